"""A report is the same each time, complete, plain JSON, and refuses records that do not fit."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from vlakern.blind import opened
from vlakern.blind.report import report
from vlakern.blind.results import Analysis, ClosedStudy, Judgement
from vlakern.errors import InputError
from vlakern.trials import beta, confidence_sequence, visible_gap, wilson

Make = Callable[..., ClosedStudy]


def test_every_rate_has_its_intervals(closed_study: Make) -> None:
    """Of each model on all tasks and each; ten trials never stand without both intervals."""
    study = closed_study()
    rates = report(study).rates
    assert len(rates) == 5 * 3
    for row in rates:
        assert (row.wilson95, row.beta95) == (
            wilson(row.successes, row.n),
            beta(row.successes, row.n),
        )
        assert row.always95 is None
        assert row.n == row.planned == (20 if row.model == "base" else 10) * (2 - bool(row.task))
    wanted = sum(row.success for row in study.results)
    assert sum(row.successes for row in rates if row.task is None) == wanted


def test_sequential_rates_hold_at_any_time(closed_study: Make) -> None:
    """The bounds of every look are wider than those of one."""
    for row in report(closed_study(analysis=Analysis(design="sequential"))).rates:
        assert row.always95 == confidence_sequence(row.successes, row.n)
        assert row.wilson95 is not None
        assert row.always95 is not None
        assert row.always95[0] <= row.wilson95[0]
        assert row.always95[1] >= row.wilson95[1]


def test_json_is_plain_and_repeatable(closed_study: Make) -> None:
    """Written without a NaN, read back the same, twice the same; a sure difference is no number."""
    study = closed_study({"anna": 1.0, "bert": 0.0, "base": 0.5}, (("anna", "bert", "base"),))
    text = json.dumps(report(study).to_json(), allow_nan=False)
    assert text == json.dumps(report(study).to_json(), allow_nan=False)
    read = json.loads(text)
    assert len(read["study"]["trials"]) == 60
    assert read["comparisons"][0]["odds_ratio"] is None
    assert read["comparisons"][0]["different"] is True
    assert read["comparisons"][0]["strata"][0] == {
        "successes_a": 10,
        "n_a": 10,
        "successes_b": 0,
        "n_b": 10,
    }
    assert {row["model"] for row in read["rates"]} == {"anna", "bert", "base"}
    planned = [row for row in read["power"] if row["n"] == 10]
    assert planned[0]["gap"] == visible_gap(10)


def test_a_model_without_a_trial_is_said(closed_study: Make) -> None:
    """No rate is made up for it, and what is missing is named."""
    study = closed_study()
    kept = tuple(row for row in study.results if row.model != "dora")
    found = report(dataclasses.replace(study, results=kept))
    row = next(row for row in found.rates if row.model == "dora")
    assert (row.n, row.rate, row.wilson95) == (0, None, None)
    assert any("dora 20" in line for line in found.warnings)
    assert any("dora have no trials" in line for line in found.warnings)
    assert found.letters[1] is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": "zoe"}, "trial T0000: expected a model among"),
        ({"task": "fly"}, "expected a task among"),
        ({"group": 7}, "expected a group among"),
        ({"model": "carl"}, "expected a model of its group"),
        ({"truth": "zoe"}, "expected a guess to be right"),
        ({"guess": "zoe"}, "expected a guess among"),
    ],
)
def test_refuses_results_that_do_not_fit(
    closed_study: Make, change: dict[str, Any], sentence: str
) -> None:
    """The trial and what was expected are named."""
    study = closed_study()
    first = dataclasses.replace(study.results[0], **change)
    with pytest.raises(InputError, match=sentence):
        report(dataclasses.replace(study, results=(first, *study.results[1:])))


def test_refuses_a_study_without_results_and_a_strange_plan(closed_study: Make) -> None:
    """Nothing to report, and a pair of the plan that is no pair of the pool."""
    with pytest.raises(InputError, match="no result"):
        report(closed_study(results=()))
    with pytest.raises(InputError, match="pairs of two different models"):
        report(closed_study(analysis=Analysis(pairs=(("anna", "zoe"),))))


def test_a_record_opens_into_a_report(site: Callable[..., Any]) -> None:
    """From the first trial to the numbers: one model succeeds always, guesses never vary."""
    here = site(trials=4)
    while (turn := here.conduct.state.next) is not None:
        code = turn.trial.code
        here.run()
        here.conduct.guess(f"g{code}", "operator", code, "different")
        success = here.key.allocation.models[code] == "secret-1"
        verdict = Judgement("judge-1", success, None, None if success else "stuck")
        if turn.trial.task == "push":
            verdict = dataclasses.replace(verdict, progress=1.0 if success else 0.25)
        here.conduct.judge(f"j{code}", "judge-1", code, verdict)
    here.conduct.close("c", "analyst")
    here.conduct.request("r", "analyst")
    here.conduct.unblind("u", "analyst", here.public.commitment)
    found = report(opened.closed_study(here.public, here.key, here.conduct.state))
    rates = {row.model: (row.successes, row.n) for row in found.rates if row.task is None}
    assert rates == {f"secret-{i}": (8 if i == 1 else 0, 8) for i in range(4)}
    (row,) = [row for row in found.comparisons if "secret-1" in (row.first, row.second)]
    assert row.pairs is not None
    assert row.pairs.first + row.pairs.second == 8
    assert row.different
    assert found.blinding is not None
    assert not found.blinding.broken
    assert "There is no bridge model" in " ".join(found.warnings)
    json.dumps(found.to_json(), allow_nan=False)
