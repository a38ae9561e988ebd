"""What a number of trials can show, before any is run."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from vlakern.errors import InputError
from vlakern.trials._check import check_counts, check_level, need
from vlakern.trials.exact import boschloo_table
from vlakern.trials.intervals import wilson
from vlakern.trials.sequential import paired_log_e

__all__ = [
    "PowerRow",
    "SequentialPower",
    "power",
    "power_sentence",
    "power_table",
    "sequential_power",
    "visible_gap",
]

GAP_STEP = 0.005


class PowerRow(NamedTuple):
    """What ``n`` trials of each of two models can show.

    Attributes:
        n: trials of each model.
        gap: the smallest gap of true success rates, around 50 %, that the test finds with the
            power asked for; None where not even 0 against 100 % is enough.
        half_width: half the width of the 95 % Wilson interval at n // 2 successes.
    """

    n: int
    gap: float | None
    half_width: float


class SequentialPower(NamedTuple):
    """How often the e-process decides within ``n`` pairs, and after how many pairs one stops.

    Attributes:
        power: chance of a decision within n pairs; the error rate where the rates are equal.
        mean_pairs: expected number of pairs run, n where it does not decide.
    """

    power: float
    mean_pairs: float


def power(n_a: int, n_b: int, rate_a: float, rate_b: float, alpha: float = 0.05) -> float:
    """The probability that Boschloo's two-sided test rejects, summed over every outcome.

    Raises:
        InputError: impossible sizes, rates or alpha.
        ConfigError: scipy is not installed.
    """
    _check_rates(rate_a, rate_b, alpha)
    pmf = need("stats").binom.pmf
    reject = boschloo_table(n_a, n_b) <= alpha
    first = pmf(np.arange(n_a + 1), n_a, rate_a)
    return float(first @ reject @ pmf(np.arange(n_b + 1), n_b, rate_b))


def sequential_power(n: int, rate_a: float, rate_b: float, alpha: float = 0.05) -> SequentialPower:
    """What :func:`vlakern.trials.paired_e_process` does within ``n`` pairs, looked at after each.

    Exact: the chances of every count of pairs won and lost are carried from pair to pair, and those
    whose e-value reaches ``1 / alpha`` leave.

    Raises:
        InputError: an impossible number of pairs, rates or alpha.
        ConfigError: scipy is not installed.
    """
    check_counts(0, n)
    _check_rates(rate_a, rate_b, alpha)
    won, lost = rate_a * (1 - rate_b), rate_b * (1 - rate_a)
    count = np.arange(n + 1)
    stop = paired_log_e(count[:, None], count) >= -math.log(alpha)
    chances = np.zeros((n + 1, n + 1))
    chances[0, 0] = 1
    decided = mean = 0.0
    for pairs in range(1, n + 1):
        after = (1 - won - lost) * chances
        after[1:] += won * chances[:-1]
        after[:, 1:] += lost * chances[:, :-1]
        leaving = float(after[stop].sum())
        after[stop] = 0
        chances, decided, mean = after, decided + leaving, mean + pairs * leaving
    return SequentialPower(decided, mean + n * float(chances.sum()))


def _check_rates(rate_a: float, rate_b: float, alpha: float) -> None:
    check_level(alpha, "alpha")
    for rate in (rate_a, rate_b):
        if not 0 <= rate <= 1:
            raise InputError(f"expected success rates in [0, 1], found {rate!r}")


def visible_gap(
    n: int, goal: float = 0.8, alpha: float = 0.05, sequential: bool = False
) -> float | None:
    """The smallest gap around 50 % that ``n`` trials of each of two models find.

    Args:
        n: trials of each model.
        goal: the power, in (0, 1).
        alpha: two-sided; divide it by the number of pairs for the first of them after Holm.
        sequential: by the e-process of matched pairs instead of Boschloo's test at the end.

    Returns:
        The gap as a fraction, in steps of half a point; None if 0 against 100 % is not enough.

    Raises:
        InputError: impossible size, goal or alpha.
        ConfigError: scipy is not installed.
    """
    check_counts(0, n)
    check_level(goal, "power")

    def enough(steps: int) -> bool:
        half = steps * GAP_STEP / 2
        rates = min(1.0, 0.5 + half), max(0.0, 0.5 - half)
        if sequential:
            return sequential_power(n, *rates, alpha).power >= goal
        return power(n, n, *rates, alpha) >= goal

    low, high = 0, round(1 / GAP_STEP)
    if not enough(high):
        return None
    # Power grows with the gap, so halving finds the first gap that is enough.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high * GAP_STEP


def power_table(
    sizes: Iterable[int] = (5, 10, 20, 30, 50, 100),
    goal: float = 0.8,
    alpha: float = 0.05,
    sequential: bool = False,
) -> list[PowerRow]:
    """One row for each number of trials; see :class:`PowerRow` and :func:`visible_gap`."""
    rows = []
    for n in sizes:
        gap = visible_gap(n, goal, alpha, sequential)
        low, high = wilson(n // 2, n)
        rows.append(PowerRow(n, gap, (high - low) / 2))
    return rows


def power_sentence(
    n: int, goal: float = 0.8, alpha: float = 0.05, pairs: int = 1, sequential: bool = False
) -> str:
    """What ``n`` trials of each model can show, as one sentence for people.

    Args:
        n: trials of each model.
        goal: the power, in (0, 1).
        alpha: two-sided, of the whole family of pairs.
        pairs: how many pairs of models are compared and corrected for.
        sequential: whether the e-process of matched pairs is looked at after every pair.

    Raises:
        InputError: impossible size, goal, alpha or number of pairs.
        ConfigError: scipy is not installed.
    """
    check_counts(0, pairs)
    gap = visible_gap(n, goal, alpha, sequential)
    low, high = wilson(n // 2, n)
    width = f"an interval spans up to about {100 * (high - low):.0f} points"
    if gap is None:
        return (
            f"With N = {n} trials of each model no difference between two models can be seen"
            f" reliably, not even 0 % against 100 %; {width}."
        )
    test = "e-process looked at after every pair" if sequential else "Boschloo's exact test"
    text = (
        f"With N = {n} trials of each model you can see a gap of about {_points(gap)} points"
        f" between two models ({test}, two-sided alpha {alpha:g}, {100 * goal:g} % power, rates"
        f" around 50 %)"
    )
    if pairs > 1:
        first = visible_gap(n, goal, alpha / pairs, sequential)
        seen = "none" if first is None else f"about {_points(first)} points"
        text += f", {seen} as one of {pairs} comparisons that are corrected for"
    return f"{text}; {width}."


def _points(gap: float) -> int:
    return math.ceil(100 * gap - 1e-9)
