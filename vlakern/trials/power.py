"""What a number of trials can show, before any is run."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from vlakern.errors import InputError
from vlakern.trials._check import check_counts, check_level, need
from vlakern.trials.exact import boschloo_table
from vlakern.trials.intervals import wilson

__all__ = ["PowerRow", "power", "power_sentence", "power_table", "visible_gap"]

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


def power(n_a: int, n_b: int, rate_a: float, rate_b: float, alpha: float = 0.05) -> float:
    """The probability that Boschloo's two-sided test rejects, summed over every outcome.

    Raises:
        InputError: impossible sizes, rates or alpha.
        ConfigError: scipy is not installed.
    """
    check_level(alpha, "alpha")
    for rate in (rate_a, rate_b):
        if not 0 <= rate <= 1:
            raise InputError(f"expected success rates in [0, 1], found {rate!r}")
    pmf = need("stats").binom.pmf
    reject = boschloo_table(n_a, n_b) <= alpha
    first = pmf(np.arange(n_a + 1), n_a, rate_a)
    return float(first @ reject @ pmf(np.arange(n_b + 1), n_b, rate_b))


def visible_gap(n: int, goal: float = 0.8, alpha: float = 0.05) -> float | None:
    """The smallest gap around 50 % that two samples of ``n`` find with probability ``goal``.

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
        return power(n, n, min(1.0, 0.5 + half), max(0.0, 0.5 - half), alpha) >= goal

    low, high = 0, round(1 / GAP_STEP)
    if not enough(high):
        return None
    # Power grows with the gap, so halving finds the first gap that is enough.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high * GAP_STEP


def power_table(
    sizes: Iterable[int] = (5, 10, 20, 30, 50, 100), goal: float = 0.8, alpha: float = 0.05
) -> list[PowerRow]:
    """One row for each number of trials; see :class:`PowerRow`."""
    rows = []
    for n in sizes:
        gap = visible_gap(n, goal, alpha)
        low, high = wilson(n // 2, n)
        rows.append(PowerRow(n, gap, (high - low) / 2))
    return rows


def power_sentence(n: int, goal: float = 0.8, alpha: float = 0.05) -> str:
    """What ``n`` trials of each model can show, as one sentence for people.

    Raises:
        InputError: impossible size, goal or alpha.
        ConfigError: scipy is not installed.
    """
    gap = visible_gap(n, goal, alpha)
    low, high = wilson(n // 2, n)
    width = f"an interval spans up to about {100 * (high - low):.0f} points"
    if gap is None:
        return (
            f"With N = {n} trials of each model no difference between two models can be seen"
            f" reliably, not even 0 % against 100 %; {width}."
        )
    points = math.ceil(100 * gap - 1e-9)
    return (
        f"With N = {n} trials of each model you can see a gap of about {points} points between two"
        f" models (Boschloo's exact test, two-sided alpha {alpha:g}, {goal:.0%} power, rates around"
        f" 50 %); {width}."
    )
