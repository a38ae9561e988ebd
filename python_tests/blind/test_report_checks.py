"""The checks find what was put into a study, and nothing where nothing was."""

import dataclasses
from collections.abc import Callable
from statistics import fmean

import pytest

from vlakern.blind.report_checks import (
    agreement,
    blinding,
    bridge_check,
    drifts,
    rankings,
    voids,
)
from vlakern.blind.results import ClosedStudy, Result
from vlakern.trials import cohen_kappa, wilson

Make = Callable[..., ClosedStudy]


def changed(study: ClosedStudy, change: Callable[[Result], Result]) -> ClosedStudy:
    return dataclasses.replace(study, results=tuple(change(row) for row in study.results))


def test_two_judges(closed_study: Make) -> None:
    """Kappa is that of the two verdicts, without the adjudicator's; none with one judge."""
    study = closed_study()
    found = agreement(study)
    assert found is not None
    pairs = [(r.judgements[0].success, r.judgements[1].success) for r in study.results]
    assert found.kappa == cohen_kappa([a for a, _ in pairs], [b for _, b in pairs])
    assert found.adjudicated == sum(a != b for a, b in pairs) > 0
    alone = changed(study, lambda row: dataclasses.replace(row, judgements=row.judgements[:1]))
    assert agreement(alone) is None


def test_blinding_that_held_and_that_broke(closed_study: Make) -> None:
    """Random guesses are at chance; an operator who often knows is found, whoever the model is."""
    held = blinding(closed_study())
    broke = blinding(closed_study(guess_skill=0.5))
    assert held is not None
    assert broke is not None
    assert (held.broken, broke.broken) == (False, True)
    assert held.overall.index == pytest.approx(fmean(i.index for i in held.by_truth.values()))
    assert held.p > 0.05 > broke.p
    assert broke.james is not None
    assert held.james is not None
    assert broke.james.index < held.james.index
    assert sum(index.n for index in held.by_truth.values()) == held.asked == 120


def test_always_the_likelier_answer_is_no_leak(closed_study: Make) -> None:
    """Whoever always says "different" is mostly right and knows nothing."""
    study = closed_study(guess_choices=("same", "different"))
    before = {row.order: row.model for row in study.results}
    blind = changed(
        study,
        lambda row: dataclasses.replace(
            row,
            guess="different",
            truth="same" if before.get(row.order - 1) == row.model else "different",
        ),
    )
    found = blinding(blind)
    assert found is not None
    assert found.right > 2 * found.wrong
    assert (found.overall.index, found.p, found.broken) == (0, 1, False)


def test_nobody_was_asked(closed_study: Make) -> None:
    """No guess, no index."""
    study = changed(closed_study(), lambda row: dataclasses.replace(row, guess=None, truth=None))
    assert blinding(study) is None


def test_drift_is_found(closed_study: Make) -> None:
    """A battery that runs down: all fail in the second half; without it there is no trend."""
    study = closed_study(seed=3)
    (calm,) = drifts(study)
    assert calm.p > 0.05
    worn = changed(
        study, lambda row: dataclasses.replace(row, success=row.success and row.position % 30 < 15)
    )
    (found,) = drifts(worn)
    assert found.p < 0.01
    assert found.high is not None
    assert found.high < 1


def test_fatigue_is_counted_from_the_break(closed_study: Make) -> None:
    """A pause of ten minutes starts the count again."""

    def pause(row: Result) -> Result:
        breaks = row.position // 6
        tired = row.position % 6 >= 3
        return dataclasses.replace(
            row, started=row.started + 600 * breaks, success=row.success and not tired
        )

    order, fatigue = drifts(changed(closed_study(), pause))
    assert fatigue.along == "number of trials since the last break"
    assert fatigue.p < 0.01 < order.p


def test_bridge_that_changed(closed_study: Make) -> None:
    """A bridge that fails in the second group shows that the groups differ."""
    study = closed_study()
    calm = bridge_check(study)
    assert calm is not None
    assert calm.p > 0.05
    assert calm.groups[0][2:] == (20, *wilson(calm.groups[0][1], 20))
    worse = changed(
        study, lambda row: dataclasses.replace(row, success=row.success and row.group == 0)
    )
    found = bridge_check(worse)
    assert found is not None
    assert found.p < 0.01
    assert bridge_check(dataclasses.replace(study, bridge=None)) is None


def test_voided_trials_are_counted(closed_study: Make) -> None:
    """Of the trials that were begun, with reasons."""
    rows = {row.model: row for row in voids(closed_study())}
    assert (rows["bert"].voided, rows["bert"].begun) == (1, 21)
    assert rows["bert"].reasons == {"network": 1}
    assert (rows["anna"].low, rows["anna"].high) == wilson(0, 20)


def test_ranking_over_the_bridge(closed_study: Make) -> None:
    """One ranking of all models, in the order of their true rates; the same each time."""
    study = closed_study(planned=30)
    (found,) = rankings(study)
    names = [name for name, *_ in found.strengths]
    assert names[0] == "anna"
    assert names[-1] == "bert"
    assert found.comparisons == 2 * 2 * 30 * 3
    assert all(low <= value <= high for _, value, low, high in found.strengths)
    assert rankings(study) == (found,)


def test_ranking_without_a_bridge(closed_study: Make) -> None:
    """Each group has its own; who always won still has a strength; ties alone give none."""
    groups = (("anna", "bert"), ("carl", "dora"))
    rates = {"anna": 1.0, "bert": 0.0, "carl": 1.0, "dora": 1.0}
    first, second = rankings(closed_study(rates, groups))
    assert [name for name, *_ in first.strengths] == ["anna", "bert"]
    assert second.strengths == ()
    assert second.why is not None
    assert second.why.startswith("every comparison is a tie")


def test_progress_decides_between_failures(closed_study: Make) -> None:
    """Two failures are a tie only where the progress is the same too."""
    study = closed_study({"anna": 0.0, "bert": 0.0}, (("anna", "bert"),), planned=20)
    further = changed(
        study, lambda row: dataclasses.replace(row, progress=0.5 if row.model == "anna" else 0.25)
    )
    (found,) = rankings(further)
    assert found.ties == 0
    assert found.strengths[0][0] == "anna"
