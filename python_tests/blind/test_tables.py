"""Tables: every trial in a row, no model in it before the names are given."""

import csv
import io
from collections.abc import Callable
from typing import Any

from vlakern.blind.opened import running_study
from vlakern.blind.results import Judgement
from vlakern.blind.tables import table, trials


def rows(here: Any) -> list[dict[str, str]]:
    """The table that another process makes while the record is open."""
    plan, key, state = running_study(here.folder)
    return list(csv.DictReader(io.StringIO(trials(plan, state, key.allocation.models))))


def run(here: Any) -> list[str]:
    """A trial that is disputed and settled, one that is voided, and one that is not judged."""
    first = here.run()
    here.conduct.judge("1", "judge-1", first, verdict(here, first, "judge-1", True))
    here.conduct.judge("2", "judge-2", first, verdict(here, first, "judge-2", False))
    settled = verdict(here, first, "adjudicator", False)
    here.conduct.adjudicate("3", "adjudicator", first, settled)
    second = here.conduct.state.next.trial.code
    here.conduct.start("4", "operator", second)
    here.conduct.abort("5", "operator", second, "operator error")
    return [first, second, here.run()]


def verdict(here: Any, code: str, judge: str, success: bool) -> Judgement:
    progress = 1.0 if here.conduct.state.trials[code].trial.task == "push" else None
    return Judgement(judge, success, progress, None if success else "stuck")


def test_trials_have_names_only_once_they_are_given(site: Callable[..., Any]) -> None:
    """Not while the study runs, not once it is closed, not after the first of the two steps."""
    here = site(judges=2, every=1000)
    codes = run(here)
    for step in ("open", "closed", "requested"):
        if step == "closed":
            here.conduct.close("c", "analyst", "enough")
        elif step == "requested":
            here.conduct.request("r", "analyst")
        found = rows(here)
        assert [row["code"] for row in found] == codes
        assert "model" not in found[0]
        assert "secret" not in str(found)
    here.conduct.unblind("u", "analyst", here.public.commitment)
    named = rows(here)
    models = here.key.allocation.models
    assert [row["model"] for row in named] == [models[code] for code in codes]
    assert [{**row, "model": ""} for row in named] == [{**row, "model": ""} for row in found]


def test_a_row_says_what_happened(site: Callable[..., Any]) -> None:
    """Each judge's word beside the outcome that counts, an abort's reason, the video's hash."""
    here = site(judges=2, every=1000)
    run(here)
    settled, voided, waiting = rows(here)
    said = ["success", "failure", "judge-1", "judge-2", "adjudicator", "aborted"]
    assert [settled[name] for name in said] == ["0", "stuck", "1", "0", "0", ""]
    assert [voided[name] for name in said] == ["", "", "", "", "", "operator error"]
    assert [waiting[name] for name in said] == ["", "", "", "", "", ""]
    assert [row["seconds"] for row in (voided, waiting)] == ["0.0", "10.0"]
    assert len(settled["video_sha256"]) == 64
    assert [row["order"] for row in (settled, voided, waiting)] == ["0", "1", "2"]


def test_no_cell_is_a_formula() -> None:
    """A spreadsheet shows it and does not run it; numbers below zero stay numbers."""
    text = table(("a", "b", "c"), [{"a": "=1+1", "b": -1.5, "c": None}, {"a": 'x,"y'}])
    assert list(csv.reader(io.StringIO(text))) == [
        ["a", "b", "c"],
        ["'=1+1", "-1.5", ""],
        ['x,"y', "", ""],
    ]
