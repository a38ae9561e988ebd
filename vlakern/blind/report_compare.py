"""Comparisons of a closed study: within groups, between groups, one pair after another, ranked."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from vlakern.blind.results import ClosedStudy, Result
from vlakern.trials import (
    Stratum,
    anytime_p,
    boschloo,
    cochran_mantel_haenszel,
    compact_letters,
    first_crossing,
    holm,
    mcnemar,
    newcombe,
    newcombe_paired,
    newcombe_stratified,
    paired_e_process,
    stratified_exact,
)

__all__ = [
    "BOSCHLOO",
    "CONDITIONAL",
    "SEQUENTIAL",
    "Across",
    "Comparison",
    "Evidence",
    "MatchedPairs",
    "TaskComparison",
    "across",
    "blocks",
    "chosen_pairs",
    "compare",
    "letters",
    "matched",
]

BOSCHLOO = "Boschloo's exact test"
CONDITIONAL = "exact stratified test"
SEQUENTIAL = "e-process of matched pairs"
# Above this Boschloo's test costs seconds and gains nothing over Fisher's.
LARGEST = 300


@dataclass(frozen=True)
class TaskComparison:
    """Two models on one task: counts over their common groups, and the difference of rates.

    Attributes:
        test, p: Boschloo's in one group, stratified in more; two-sided, one look, uncorrected.
        p_holm: corrected over every pair and task.
    """

    task: str
    successes_first: int
    n_first: int
    successes_second: int
    n_second: int
    difference: float
    low: float
    high: float
    test: str
    p: float
    p_holm: float


@dataclass(frozen=True)
class MatchedPairs:
    """Trials of two models from the same initial condition of the same task and group."""

    both: int
    first: int
    second: int
    neither: int
    difference: float
    low: float
    high: float
    mcnemar_exact: float
    mcnemar_mid_p: float


@dataclass(frozen=True)
class Evidence:
    """The e-values of the matched pairs in the order in which pairs were completed.

    Attributes:
        e_values: after each pair, against equal success in every pair.
        crossed: after how many pairs ``1 / alpha`` was reached, None if never.
        p: valid at any time.
    """

    e_values: tuple[float, ...]
    crossed: int | None
    p: float


@dataclass(frozen=True)
class Comparison:
    """Two models of one group; strata are the groups and tasks in which both ran.

    Attributes:
        difference: rate of ``first`` minus rate of ``second``, Mantel-Haenszel weighted; ``low``
            and ``high`` the hybrid score interval of confidence 1 - alpha.
        test: which test ``p`` is of; ``p_holm``: corrected over all compared pairs; ``different``:
            whether it is at most alpha.
        cmh_p, odds_ratio, odds_low, odds_high: the large-sample Cochran-Mantel-Haenszel test.
    """

    first: str
    second: str
    groups: tuple[int, ...]
    strata: tuple[Stratum, ...]
    difference: float
    low: float
    high: float
    test: str
    p: float
    p_holm: float
    different: bool
    cmh_p: float
    odds_ratio: float | None
    odds_low: float | None
    odds_high: float | None
    tasks: tuple[TaskComparison, ...]
    pairs: MatchedPairs | None
    sequence: Evidence | None


@dataclass(frozen=True)
class Across:
    """Two models that never shared a group: the raw difference, and the one over the bridge.

    The raw one mixes the models' difference with the groups' (day, operator, wear); the adjusted
    one is of each model's lead over the bridge model in its own group, None without a bridge.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    adjusted: tuple[float, float, float] | None


def chosen_pairs(study: ClosedStudy) -> list[tuple[str, str]]:
    """The pairs that the analysis plan names, or all pairs of the pool."""
    named = [(pair[0], pair[1]) for pair in study.analysis.pairs]
    return named or list(combinations([model.name for model in study.models], 2))


def compare(study: ClosedStudy, results: Sequence[Result] | None = None) -> tuple[Comparison, ...]:
    """Every chosen pair that shares a group in which both have results, Holm-corrected.

    Pairs and tasks that the plan compares count in the correction before they have results, too:
    else a study that ends after its first group would have tested at a milder level.

    Args:
        results: at an interim look, those that count; all of the study by default.
    """
    study = study if results is None else replace(study, results=tuple(results))
    planned = [pair for pair in chosen_pairs(study) if _shared(study, *pair)]
    found = [_compare(study, *pair) for pair in planned]
    rows = [row for row in found if row is not None]
    adjusted = _holm([row.p for row in rows], len(planned))
    tests = [task.p for row in rows for task in row.tasks]
    tasks = iter(_holm(tests, len(planned) * len(study.tasks)))
    return tuple(
        replace(
            row,
            p_holm=p,
            different=p <= study.analysis.alpha,
            tasks=tuple(replace(task, p_holm=next(tasks)) for task in row.tasks),
        )
        for row, p in zip(rows, adjusted, strict=True)
    )


def _holm(p_values: list[float], planned: int) -> list[float]:
    """Corrected for as many tests as were planned; those without results would have p = 1."""
    return list(holm([*p_values, *[1.0] * (planned - len(p_values))])[: len(p_values)])


def _compare(study: ClosedStudy, first: str, second: str) -> Comparison | None:
    shared = _shared(study, first, second)
    strata = _strata(study.results, first, second, shared)
    if not strata:
        return None
    confidence = 1 - study.analysis.alpha
    difference, low, high = newcombe_stratified(strata.values(), confidence)
    large = cochran_mantel_haenszel(strata.values(), confidence)
    ordered = matched(study.results, first, second)
    sequence = _sequence(ordered, study.analysis.alpha)
    if study.analysis.design == "sequential":
        test, p = SEQUENTIAL, sequence.p if sequence else 1.0
    else:
        test, p = _fixed(list(strata.values()))
    return Comparison(
        first=first,
        second=second,
        groups=shared,
        strata=tuple(strata.values()),
        difference=difference,
        low=low,
        high=high,
        test=test,
        p=p,
        p_holm=p,
        different=False,
        cmh_p=large.p,
        odds_ratio=large.odds_ratio,
        odds_low=large.low,
        odds_high=large.high,
        tasks=tuple(_tasks(study, strata, confidence)),
        pairs=_pairs(ordered, confidence),
        sequence=sequence,
    )


def _shared(study: ClosedStudy, first: str, second: str) -> tuple[int, ...]:
    return tuple(i for i, group in enumerate(study.groups) if first in group and second in group)


def _strata(
    results: Iterable[Result], first: str, second: str, groups: Sequence[int]
) -> dict[tuple[int, str], Stratum]:
    counts: dict[tuple[int, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for row in results:
        if row.group in groups and row.model in (first, second):
            side = 0 if row.model == first else 2
            counts[row.group, row.task][side] += row.success
            counts[row.group, row.task][side + 1] += 1
    return {key: Stratum(*n) for key, n in sorted(counts.items()) if n[1] and n[3]}


def _fixed(strata: list[Stratum]) -> tuple[str, float]:
    """The test for one look at the end; which one follows from the design, not from outcomes."""
    if len(strata) == 1 and max(strata[0].n_a, strata[0].n_b) <= LARGEST:
        return BOSCHLOO, boschloo(*strata[0])
    return CONDITIONAL, stratified_exact(strata)


def _tasks(
    study: ClosedStudy, strata: dict[tuple[int, str], Stratum], confidence: float
) -> Iterable[TaskComparison]:
    for task in study.tasks:
        rows = [counts for (_, name), counts in strata.items() if name == task]
        if rows:
            total = Stratum(*(sum(column) for column in zip(*rows, strict=True)))
            difference = total.successes_a / total.n_a - total.successes_b / total.n_b
            low, high = newcombe(*total, confidence)
            test, p = _fixed(rows)
            yield TaskComparison(task, *total, difference, low, high, test, p, p)


def matched(results: Iterable[Result], first: str, second: str) -> list[tuple[Result, Result]]:
    """Trials of the two from one group, task and condition, in the order of completion.

    Where a condition was repeated, the first run of the one meets the first of the other.
    """
    found = [
        (block[first], block[second])
        for block in blocks(results)
        if first in block and second in block
    ]
    return sorted(found, key=lambda pair: max(pair[0].order, pair[1].order))


def blocks(results: Iterable[Result]) -> list[dict[str, Result]]:
    """One trial of each model from one group, task and condition; repetitions are own blocks."""
    places: dict[tuple[int, str, str, int], dict[str, Result]] = defaultdict(dict)
    seen: dict[tuple[int, str, str, str], int] = defaultdict(int)
    for row in sorted(results, key=lambda row: row.order):
        turn = (row.group, row.task, row.condition, row.model)
        places[row.group, row.task, row.condition, seen[turn]][row.model] = row
        seen[turn] += 1
    return list(places.values())


def _pairs(ordered: list[tuple[Result, Result]], confidence: float) -> MatchedPairs | None:
    if not ordered:
        return None
    cells = [0, 0, 0, 0]
    for one, other in ordered:
        cells[2 * (not one.success) + (not other.success)] += 1
    both, first, second, neither = cells
    low, high = newcombe_paired(both, first, second, neither, confidence)
    difference = (first - second) / len(ordered)
    p_values = mcnemar(first, second)
    return MatchedPairs(both, first, second, neither, difference, low, high, *p_values)


def _sequence(ordered: list[tuple[Result, Result]], alpha: float) -> Evidence | None:
    if not ordered:
        return None
    first = [one.success for one, _ in ordered]
    log_e = paired_e_process(first, [other.success for _, other in ordered]).different
    # Anything larger says no more, and JSON has no infinity.
    values = np.exp(np.minimum(log_e, 600.0))
    return Evidence(tuple(values.tolist()), first_crossing(log_e, alpha), anytime_p(log_e))


def across(study: ClosedStudy) -> tuple[Across, ...]:
    """Every chosen pair without a common group: by tasks, and over the bridge if there is one."""
    everywhere = tuple(range(len(study.groups)))
    confidence, found = 1 - study.analysis.alpha, []
    for first, second in chosen_pairs(study):
        if _shared(study, first, second):
            continue
        # Of both models in all groups, as if the group did not matter.
        merged = [replace(row, group=0) for row in study.results]
        strata = _strata(merged, first, second, everywhere)
        if strata:
            raw = newcombe_stratified(strata.values(), confidence)
            found.append(Across(first, second, *raw, _over_bridge(study, first, second)))
    return tuple(found)


def _over_bridge(study: ClosedStudy, first: str, second: str) -> tuple[float, float, float] | None:
    """The difference of the leads over the bridge, with the interval of Zou and Donner (2008)."""
    if study.bridge is None:
        return None
    leads = []
    for name in (first, second):
        strata = _strata(study.results, name, study.bridge, _shared(study, name, study.bridge))
        if not strata:
            return None
        leads.append(newcombe_stratified(strata.values(), 1 - study.analysis.alpha))
    (lead_a, low_a, high_a), (lead_b, low_b, high_b) = leads
    difference = lead_a - lead_b
    low = difference - math.hypot(lead_a - low_a, high_b - lead_b)
    high = difference + math.hypot(high_a - lead_a, lead_b - low_b)
    return difference, max(-1.0, low), min(1.0, high)


def letters(study: ClosedStudy, rows: Iterable[Comparison]) -> tuple[dict[str, str] | None, ...]:
    """Of each group the compact letter display, best first; None where a pair was not compared."""
    verdicts = {frozenset((row.first, row.second)): row.different for row in rows}
    found: list[dict[str, str] | None] = []
    for index, group in enumerate(study.groups):
        pairs = list(combinations(group, 2))
        if not all(frozenset(pair) in verdicts for pair in pairs):
            found.append(None)
            continue
        rates = {name: _rate(study, name, index) for name in group}
        best = sorted(group, key=rates.__getitem__, reverse=True)
        found.append(compact_letters(best, [p for p in pairs if verdicts[frozenset(p)]]))
    return tuple(found)


def _rate(study: ClosedStudy, name: str, group: int) -> float:
    won = [row.success for row in study.results if row.model == name and row.group == group]
    return sum(won) / len(won)
