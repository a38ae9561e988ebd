"""Checks on a closed study itself: judges, blinding, drift, the bridge, voided trials, ranking."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vlakern.blind.report_compare import blocks
from vlakern.blind.results import UNKNOWN, ClosedStudy, Result
from vlakern.errors import InputError
from vlakern.trials import (
    BlindingIndex,
    Kappa,
    bang_index,
    bradley_terry_blocks,
    cohen_kappa,
    guess_test,
    holm,
    james_index,
    mean_bang_index,
    order_effect,
    stratified_exact,
    wilson,
)

__all__ = [
    "ADJUDICATOR",
    "Agreement",
    "Blinding",
    "BridgeCheck",
    "Drift",
    "Ranking",
    "Voids",
    "agreement",
    "blinding",
    "bridge_check",
    "drifts",
    "rankings",
    "voids",
]

ADJUDICATOR = "adjudicator"
BREAK_S = 300.0
BROKEN = 0.05


@dataclass(frozen=True)
class Agreement:
    """How far two judges of the same trials agree, and how often an adjudicator was needed."""

    judged_twice: int
    adjudicated: int
    kappa: Kappa


@dataclass(frozen=True)
class Blinding:
    """Guesses against chance.

    Attributes:
        asked: trials after which a guess was asked for; right, wrong, unknown: what came.
        overall: the mean of Bang's indices; by_truth: of each answer that was right.
        james: James' index, None where fewer than two choices were ever right.
        p: of the permutation test within groups that guesses are right by chance alone.
        broken: whether p is at most 0.05.
    """

    asked: int
    right: int
    wrong: int
    unknown: int
    overall: BlindingIndex
    by_truth: dict[str, BlindingIndex]
    james: BlindingIndex | None
    p: float
    broken: bool


@dataclass(frozen=True)
class Drift:
    """A trend of success over ``along``; odds ratios are per ten positions, None if not finite."""

    along: str
    n: int
    odds_ratio: float | None
    low: float | None
    high: float | None
    p: float


@dataclass(frozen=True)
class BridgeCheck:
    """The bridge model's success in each group, and whether groups differ.

    Attributes:
        groups: ``(group, successes, n, low, high)`` with the 95 % Wilson interval.
        p: smallest Holm-corrected exact p-value over pairs of groups, stratified by task.
    """

    model: str
    groups: tuple[tuple[int, int, int, float, float], ...]
    p: float


@dataclass(frozen=True)
class Voids:
    """Trials of a model that were aborted, of those begun, with the 95 % Wilson interval."""

    model: str
    voided: int
    begun: int
    low: float
    high: float
    reasons: dict[str, int]


@dataclass(frozen=True)
class Ranking:
    """Bradley-Terry log-strengths of models that met, best first.

    Half a win each way is added between models that met: a model that never lost keeps a strength.

    Attributes:
        strengths: ``(model, log_strength, low, high)`` with 95 % bounds; see
            :func:`vlakern.trials.bradley_terry_blocks`.
        comparisons, ties: how many.
        why: why there is no ranking, None where there is one.
    """

    groups: tuple[int, ...]
    strengths: tuple[tuple[str, float, float, float], ...]
    comparisons: int
    ties: int
    why: str | None


def agreement(study: ClosedStudy) -> Agreement | None:
    """Cohen's kappa over trials with two judges; None where no trial has two."""
    pairs, settled = [], 0
    for row in study.results:
        given = sorted((j for j in row.judgements if j.judge != ADJUDICATOR), key=lambda j: j.judge)
        settled += len(given) < len(row.judgements)
        if len(given) >= 2:
            pairs.append((given[0].success, given[1].success))
    if not pairs:
        return None
    kappa = cohen_kappa([one for one, _ in pairs], [other for _, other in pairs])
    return Agreement(len(pairs), settled, kappa)


def blinding(study: ClosedStudy) -> Blinding | None:
    """Bang's and James' indices of the operator's guesses; None where nobody was asked."""
    asked = [row for row in study.results if row.guess is not None and row.truth is not None]
    rows = [(str(row.guess), str(row.truth)) for row in asked]
    choices = len(study.guess_choices)
    if not rows or choices < 2:
        return None
    by_truth = {
        truth: bang_index(*_scores([row for row in rows if row[1] == truth]), models=choices)
        for truth in study.guess_choices
        if any(row[1] == truth for row in rows)
    }
    right, wrong, unknown = _scores(rows)
    overall = mean_bang_index(list(by_truth.values()))
    p = guess_test([g for g, _ in rows], [t for _, t in rows], [row.group for row in asked])
    james = None
    if len(by_truth) >= 2:
        table: dict[str, dict[str | None, int]] = {name: {} for name in study.guess_choices}
        for guess, truth in rows:
            key = None if guess == UNKNOWN else guess
            table[truth][key] = table[truth].get(key, 0) + 1
        james = james_index(table)
    return Blinding(len(rows), right, wrong, unknown, overall, by_truth, james, p, p <= BROKEN)


def _scores(rows: Sequence[tuple[str, str]]) -> tuple[int, int, int]:
    unknown = sum(guess == UNKNOWN for guess, _ in rows)
    right = sum(guess == truth for guess, truth in rows)
    return right, len(rows) - right - unknown, unknown


def drifts(study: ClosedStudy) -> tuple[Drift, ...]:
    """Order in the group's queue and fatigue since a break; cells are model, task and group."""
    rows = sorted(study.results, key=lambda row: row.order)
    along: dict[str, list[int]] = {"position in the group's queue": [row.position for row in rows]}
    fresh = _since_break(rows)
    if fresh is not None:
        along["number of trials since the last break"] = fresh
    outcomes = [row.success for row in rows]
    cells = [(row.model, row.task, row.group) for row in rows]
    found = []
    for name, places in along.items():
        effect = order_effect(outcomes, places, cells)
        slope, low, high = (None if v is None else _exp(10 * v) for v in effect[1:4])
        found.append(Drift(name, effect.n, slope, low, high, effect.p))
    return tuple(found)


def _since_break(rows: Sequence[Result]) -> list[int] | None:
    """Trials since the last pause of at least ``BREAK_S`` or change of group; None without any."""
    found, breaks = [0], 0
    for before, row in pairwise(rows):
        pause = row.started - before.started - before.seconds
        rested = pause >= BREAK_S
        breaks += rested and row.group == before.group
        found.append(0 if rested or row.group != before.group else found[-1] + 1)
    return found if breaks else None


def _exp(value: float) -> float:
    return math.exp(min(700.0, value))


def bridge_check(study: ClosedStudy) -> BridgeCheck | None:
    """Whether the model that is in every group did equally well in all; None without one."""
    if study.bridge is None:
        return None
    counts: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for row in study.results:
        if row.model == study.bridge:
            counts[row.group][row.task][0] += row.success
            counts[row.group][row.task][1] += 1
    rows, p_values = [], []
    for group, tasks in sorted(counts.items()):
        successes, n = (sum(column) for column in zip(*tasks.values(), strict=True))
        rows.append((group, successes, n, *wilson(successes, n)))
        for other in (g for g in counts if g > group):
            common = [(*tasks[t], *counts[other][t]) for t in tasks if t in counts[other]]
            if common:
                p_values.append(stratified_exact(common))
    return BridgeCheck(study.bridge, tuple(rows), min(holm(p_values), default=1.0))


def voids(study: ClosedStudy) -> tuple[Voids, ...]:
    """Of each model the aborted trials; more of one model than of another can hide failures."""
    found = []
    for model in study.models:
        gone = [row for row in study.voided if row.model == model.name]
        begun = len(gone) + sum(row.model == model.name for row in study.results)
        if begun:
            reasons: dict[str, int] = defaultdict(int)
            for row in gone:
                reasons[row.reason] += 1
            bounds = wilson(len(gone), begun)
            found.append(Voids(model.name, len(gone), begun, *bounds, dict(reasons)))
    return tuple(found)


def rankings(study: ClosedStudy, seed: int = 0) -> tuple[Ranking, ...]:
    """Over all groups where a bridge connects them, else one ranking for each group."""
    every = tuple(range(len(study.groups)))
    parts = [every] if study.bridge or len(every) == 1 else [(index,) for index in every]
    return tuple(_ranking(study, part, seed) for part in parts)


def _ranking(study: ClosedStudy, groups: tuple[int, ...], seed: int) -> Ranking:
    names = tuple(dict.fromkeys(name for index in groups for name in study.groups[index]))
    met = [block for block in blocks(study.results) if _group(block) in groups and len(block) > 1]
    wins, ties = _tally(met, names)
    total, tied = int(wins.sum() + ties.sum()), int(ties.sum())
    strata = [_group(block) for block in met]
    try:
        found = bradley_terry_blocks(names, wins, ties, strata, seed=seed)
    except InputError as error:
        return Ranking(groups, (), total, tied, str(error))
    rows = tuple((row.name, row.log_strength, row.low, row.high) for row in found.strengths)
    return Ranking(groups, rows, total, tied, None)


def _group(block: dict[str, Result]) -> int:
    return next(iter(block.values())).group


def _tally(met: list[dict[str, Result]], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Wins and ties ``[blocks, M, M]``; success decides, then progress where both have one."""
    wins = np.zeros((len(met), len(names), len(names)))
    ties = np.zeros_like(wins)
    for index, block in enumerate(met):
        ranks = {name: (row.success, row.progress) for name, row in block.items()}
        for i, one in enumerate(names):
            for j, other in enumerate(names[:i]):
                if one in ranks and other in ranks:
                    verdict = _better(ranks[one], ranks[other])
                    wins[index, i, j] += verdict > 0
                    wins[index, j, i] += verdict < 0
                    ties[index, i, j] += verdict == 0
    return wins, ties


def _better(one: tuple[bool, float | None], other: tuple[bool, float | None]) -> int:
    if one[0] != other[0] or one[1] is None or other[1] is None:
        return one[0] - other[0]
    return (one[1] > other[1]) - (one[1] < other[1])
