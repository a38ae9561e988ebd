"""Whether success drifts with the position in the queue: order, wear and fatigue."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from vlakern.errors import InputError
from vlakern.trials._check import check_level, normal_quantile

__all__ = ["OrderEffect", "order_effect"]

STEPS = 50
# A slope that changes the log-odds by more than this over all positions has no finite estimate.
RUNAWAY = 25.0


class OrderEffect(NamedTuple):
    """How the odds of success change with position.

    Attributes:
        n: trials in cells that had both outcomes; the others cannot tell.
        slope: change of the log-odds per position; None where it has no finite estimate.
        low: lower bound of the slope, None with it.
        high: upper bound.
        p: two-sided p-value of the permutation test, valid at every sample size.
    """

    n: int
    slope: float | None
    low: float | None
    high: float | None
    p: float


def order_effect(
    successes: Sequence[bool],
    positions: Sequence[float],
    cells: Sequence[Hashable],
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> OrderEffect:
    """A logistic trend over position with one intercept for each cell, and a permutation test.

    A cell is a model on a task, whose own difficulty must not pass for a drift. The test permutes
    the outcomes within cells; p counts the observed order among the permutations, so that it is
    valid (B. Phipson and G. K. Smyth, Statistical Applications in Genetics and Molecular Biology 9
    (2010) 39). The slope is the maximum-likelihood estimate with its large-sample interval.

    Args:
        successes: outcome of each trial.
        positions: when it ran: its place in the queue, or since the last break.
        cells: what it was, for instance (model, task).
        confidence: coverage aimed at, in (0, 1).
        resamples: permutations, at least 99.
        seed: of the permutations, so that a report can be made again.

    Raises:
        InputError: no trial, lists of different lengths, or impossible options.
    """
    check_level(confidence)
    if not successes or not len(successes) == len(positions) == len(cells):
        raise InputError(
            "expected an outcome, a position and a cell for each of at least one trial, found "
            f"{len(successes)}, {len(positions)} and {len(cells)}"
        )
    if resamples < 99:
        raise InputError(f"expected at least 99 permutations, found {resamples!r}")
    won = np.array(successes, dtype=float)
    place = np.array(positions, dtype=float)
    names = {cell: index for index, cell in enumerate(dict.fromkeys(cells))}
    member = np.array([names[cell] for cell in cells])
    groups = [np.flatnonzero(member == index) for index in range(len(names))]
    groups = [group for group in groups if 0 < won[group].sum() < len(group)]
    groups = [group for group in groups if np.ptp(place[group]) > 0]
    n = sum(map(len, groups))
    if not groups:
        return OrderEffect(0, None, None, None, 1.0)
    p = _permutation(won, place, groups, resamples, seed)
    return OrderEffect(n, *_trend(won, place, groups, confidence), p)


def _permutation(
    won: np.ndarray, place: np.ndarray, groups: list[np.ndarray], resamples: int, seed: int
) -> float:
    rng = np.random.default_rng(seed)
    observed, drawn = 0.0, np.zeros(resamples)
    for group in groups:
        centred = place[group] - place[group].mean()
        observed += float(centred @ won[group])
        shuffled = rng.permuted(np.tile(won[group], (resamples, 1)), axis=1)
        drawn += shuffled @ centred
    # Sums that are equal but for rounding are as extreme as the observed one.
    slack = 1e-9 * (1 + abs(observed))
    return (1 + int((np.abs(drawn) >= abs(observed) - slack).sum())) / (resamples + 1)


def _trend(
    won: np.ndarray, place: np.ndarray, groups: list[np.ndarray], confidence: float
) -> tuple[float | None, float | None, float | None]:
    """Newton's method on the slope and the cells' intercepts."""
    cells = len(groups)
    rows = np.concatenate(groups)
    member = np.concatenate([np.full(len(group), i) for i, group in enumerate(groups)])
    spread = float(np.ptp(place[rows]))
    design = np.zeros((len(rows), cells + 1))
    design[np.arange(len(rows)), member] = 1
    design[:, cells] = (place[rows] - place[rows].mean()) / spread
    outcome = won[rows]
    parameters = np.zeros(cells + 1)
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-np.clip(design @ parameters, -500, 500)))
        information = (design.T * (chance * (1 - chance))) @ design
        step = np.linalg.lstsq(information, design.T @ (outcome - chance), rcond=None)[0]
        parameters += np.clip(step, -2, 2)
        if np.abs(parameters).max() > RUNAWAY:
            return None, None, None
        if np.abs(step).max() < 1e-10:
            break
    chance = 1 / (1 + np.exp(-(design @ parameters)))
    information = (design.T * (chance * (1 - chance))) @ design
    error = math.sqrt(np.linalg.pinv(information)[cells, cells])
    half = normal_quantile(confidence) * error
    slope = float(parameters[cells])
    return slope / spread, (slope - half) / spread, (slope + half) / spread
