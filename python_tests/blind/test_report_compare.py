"""Comparisons are those of the raw rows, corrected over the family, and stay within alpha."""

import dataclasses
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest

from vlakern.blind.report_compare import (
    BOSCHLOO,
    CONDITIONAL,
    SEQUENTIAL,
    across,
    blocks,
    compare,
    letters,
    matched,
)
from vlakern.blind.results import Analysis, ClosedStudy
from vlakern.trials import boschloo, holm, mcnemar, newcombe, newcombe_paired, stratified_exact

Make = Callable[..., ClosedStudy]


def count(study: ClosedStudy, model: str, **where: object) -> tuple[int, int]:
    rows = [
        row.success
        for row in study.results
        if row.model == model and all(getattr(row, k) == v for k, v in where.items())
    ]
    return sum(rows), len(rows)


def test_one_task_is_boschloo_and_newcombe(closed_study: Make) -> None:
    """With one group and one task the numbers are those of the two samples."""
    study = closed_study(groups=(("anna", "bert", "base"),), tasks=("pick",))
    rows = {(row.first, row.second): row for row in compare(study)}
    assert set(rows) == set(combinations(("anna", "bert", "base"), 2))
    for (one, other), row in rows.items():
        samples = (*count(study, one), *count(study, other))
        assert row.test == BOSCHLOO
        assert row.p == boschloo(*samples)
        assert (row.low, row.high) == pytest.approx(newcombe(*samples))
    p_values = [row.p for row in rows.values()]
    assert [row.p_holm for row in rows.values()] == holm(p_values)
    assert rows["anna", "bert"].different


def test_several_tasks_are_stratified(closed_study: Make) -> None:
    """Within a group by task; the bridge meets each model in its own group alone."""
    study = closed_study()
    rows = {(row.first, row.second): row for row in compare(study)}
    assert len(rows) == 6
    row = rows["base", "carl"]
    strata = [
        (*count(study, "base", task=t, group=1), *count(study, "carl", task=t, group=1))
        for t in study.tasks
    ]
    assert (row.groups, row.test, list(row.strata)) == ((1,), CONDITIONAL, strata)
    assert row.p == stratified_exact(strata)
    for task, samples in zip(row.tasks, strata, strict=True):
        assert (task.test, task.p) == (BOSCHLOO, boschloo(*samples))
    every = [task for one in rows.values() for task in one.tasks]
    assert [task.p_holm for task in every] == holm([task.p for task in every])


def test_matched_pairs_share_their_condition(closed_study: Make) -> None:
    """One pair for each task and condition, in the order of completion; McNemar on them."""
    study = closed_study()
    pairs = matched(study.results, "anna", "bert")
    assert len(pairs) == 20
    assert all((a.task, a.condition) == (b.task, b.condition) for a, b in pairs)
    ends = [max(a.order, b.order) for a, b in pairs]
    assert ends == sorted(ends)
    row = next(row for row in compare(study) if (row.first, row.second) == ("anna", "bert"))
    first = sum(a.success and not b.success for a, b in pairs)
    second = sum(b.success and not a.success for a, b in pairs)
    both = sum(a.success and b.success for a, b in pairs)
    assert row.pairs is not None
    assert (row.pairs.mcnemar_exact, row.pairs.mcnemar_mid_p) == mcnemar(first, second)
    bounds = newcombe_paired(both, first, second, 20 - both - first - second)
    assert (row.pairs.low, row.pairs.high) == bounds


def test_repeated_conditions_meet_in_turn(closed_study: Make) -> None:
    """A condition that ran twice gives two blocks, and a lost trial leaves its partner alone."""
    study = closed_study(groups=(("anna", "bert"),), tasks=("pick",), planned=4)
    one = [dataclasses.replace(row, condition=f"c{row.position // 4}") for row in study.results]
    assert [len(block) for block in blocks(one)] == [2, 2, 2, 2]
    assert len(matched(one[:-1], "anna", "bert")) == 3


def test_sequential_design_decides_by_the_e_process(closed_study: Make) -> None:
    """The anytime p-value is what Holm corrects, and the crossing is the first one above 20."""
    study = closed_study(analysis=Analysis(design="sequential"))
    for row in compare(study):
        assert row.test == SEQUENTIAL
        assert row.sequence is not None
        assert row.p == row.sequence.p == pytest.approx(min(1, 1 / max(row.sequence.e_values)))
        reached = [i + 1 for i, e in enumerate(row.sequence.e_values) if e >= 20]
        assert row.sequence.crossed == (reached[0] if reached else None)


def test_only_planned_pairs_are_compared(closed_study: Make) -> None:
    """The family is the plan's; letters need every pair of the group."""
    study = closed_study(analysis=Analysis(pairs=(("bert", "anna"), ("anna", "carl"))))
    rows = compare(study)
    assert [(row.first, row.second) for row in rows] == [("bert", "anna")]
    assert rows[0].p == rows[0].p_holm
    assert [(row.first, row.second) for row in across(study)] == [("anna", "carl")]
    assert letters(study, rows) == (None, None)


def test_across_groups_over_the_bridge(closed_study: Make) -> None:
    """A group that was easier for all shifts the raw difference and not the adjusted one."""
    hard = {"anna": 0.5, "bert": 0.5, "base": 0.5, "carl": 0.5, "dora": 0.5}
    study = closed_study(rates=hard, planned=150, tasks=("pick",), seed=1)
    eased = [
        dataclasses.replace(row, success=row.success or row.order % 5 < 3) if row.group else row
        for row in study.results
    ]
    easy = dataclasses.replace(study, results=tuple(eased))
    rows = {(row.first, row.second): row for row in across(easy)}
    row = rows["anna", "carl"]
    assert row.high < 0
    assert row.adjusted is not None
    assert row.adjusted[1] < 0 < row.adjusted[2]
    assert across(dataclasses.replace(easy, bridge=None))[0].adjusted is None


def test_letters_follow_the_verdicts(closed_study: Make) -> None:
    """The best comes first; two models share a letter if they were not told apart."""
    study = closed_study(planned=40)
    rows = compare(study)
    first, _ = letters(study, rows)
    assert first is not None
    assert list(first) == ["anna", "base", "bert"]
    for row in rows:
        if row.groups == (0,):
            assert bool(set(first[row.first]) & set(first[row.second])) != row.different


@pytest.mark.parametrize("design", ["fixed", "sequential"])
def test_null_studies_keep_alpha(closed_study: Make, design: Any) -> None:
    """500 whole studies of equal models: a difference in at most 5 %; trials/ has the 5,000."""
    wrong = 0
    for seed in range(500):
        rates = dict.fromkeys(("anna", "bert", "carl", "dora"), 0.6)
        study = closed_study(
            rates, (tuple(rates),), planned=8, seed=seed, analysis=Analysis(design=design)
        )
        wrong += any(row.different for row in compare(study))
    assert wrong / 500 <= 0.05


def test_pairs_without_results_count_in_the_correction(closed_study: Make) -> None:
    """A study that ends after its first group was to compare six pairs, and is corrected for all.

    Else whoever stops at the first finding tests each group's pairs at the whole alpha.
    """
    whole = closed_study(analysis=Analysis(design="sequential"))
    first = [row for row in whole.results if row.group == 0]
    early = compare(dataclasses.replace(whole, results=tuple(first)))
    assert len(early) == 3
    least = min(early, key=lambda row: row.p)
    assert least.p_holm == pytest.approx(min(1.0, 6 * least.p))
    assert compare(whole, first) == early
