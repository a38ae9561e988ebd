"""Comparing two models over groups and tasks without mixing the strata's own difficulty in."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from vlakern.errors import InputError
from vlakern.trials._check import check_counts, check_level, need, normal_quantile

__all__ = [
    "MantelHaenszel",
    "Stratum",
    "cochran_mantel_haenszel",
    "risk_difference",
    "stratified_exact",
]

# Probabilities that differ by rounding alone are one value; R's mantelhaen.test has the same.
ROUNDING = 1 + 1e-7


class Stratum(NamedTuple):
    """The counts of two models in one group and task."""

    successes_a: int
    n_a: int
    successes_b: int
    n_b: int


class MantelHaenszel(NamedTuple):
    """The Cochran-Mantel-Haenszel test and the odds ratio common to the strata.

    Attributes:
        statistic: chi-square on one degree of freedom; 0 where no stratum can tell anything.
        p: its two-sided p-value, good for large samples; see :func:`stratified_exact`.
        odds_ratio: odds of success of a over those of b; inf or None where undefined.
        low: lower bound of the odds ratio, None where undefined.
        high: upper bound.
    """

    statistic: float
    p: float
    odds_ratio: float | None
    low: float | None
    high: float | None


def cochran_mantel_haenszel(
    strata: Iterable[Sequence[int]], confidence: float = 0.95, correct: bool = True
) -> MantelHaenszel:
    """Tests that in every stratum both models succeed equally often.

    Source: N. Mantel and W. Haenszel, Journal of the National Cancer Institute 22 (1959) 719-748;
    the interval J. Robins, N. Breslow and S. Greenland, Biometrics 42 (1986) 311-323.

    Args:
        strata: ``(successes_a, n_a, successes_b, n_b)`` of each stratum.
        confidence: coverage aimed at by the odds ratio's interval, in (0, 1).
        correct: whether the continuity correction of 1/2 is made.

    Raises:
        InputError: no stratum, or impossible counts or confidence.
        ConfigError: scipy is not installed.
    """
    rows = _rows(strata)
    check_level(confidence)
    excess = math.fsum(x - n * (x + y) / (n + m) for x, n, y, m in rows)
    variance = math.fsum(_variance(*row) for row in rows)
    gap = max(0.0, abs(excess) - (0.5 if correct else 0.0))
    statistic = gap * gap / variance if variance else 0.0
    p = float(need("special").chdtrc(1, statistic))
    return MantelHaenszel(statistic, p, *_odds_ratio(rows, confidence))


def _variance(x: int, n: int, y: int, m: int) -> float:
    """Of the successes of a, given the stratum's margins."""
    total, yes = n + m, x + y
    return n * m * yes * (total - yes) / (total * total * (total - 1))


def _odds_ratio(
    rows: list[Stratum], confidence: float
) -> tuple[float | None, float | None, float | None]:
    odds_a = [x * (m - y) / (n + m) for x, n, y, m in rows]
    odds_b = [(n - x) * y / (n + m) for x, n, y, m in rows]
    sum_a, sum_b = math.fsum(odds_a), math.fsum(odds_b)
    if not sum_a and not sum_b:
        return None, None, None
    if not sum_a or not sum_b:
        return (math.inf if sum_a else 0.0), None, None
    agree = [(x + m - y) / (n + m) for x, n, y, m in rows]
    parts = list(zip(agree, odds_a, odds_b, strict=True))
    variance = (
        math.fsum(p * r for p, r, _ in parts) / (2 * sum_a * sum_a)
        + math.fsum(p * s + (1 - p) * r for p, r, s in parts) / (2 * sum_a * sum_b)
        + math.fsum((1 - p) * s for p, _, s in parts) / (2 * sum_b * sum_b)
    )
    ratio, half = sum_a / sum_b, normal_quantile(confidence) * math.sqrt(variance)
    return ratio, ratio * math.exp(-half), ratio * math.exp(half)


def risk_difference(
    strata: Iterable[Sequence[int]], confidence: float = 0.95
) -> tuple[float, float, float]:
    """The Mantel-Haenszel difference of success rates with Sato's interval, for many strata.

    The width is 0 where every stratum is all or nothing; for few trials prefer
    :func:`vlakern.trials.newcombe_stratified`, which has the same estimate. Source: T. Sato,
    Biometrics 45 (1989) 1323-1324.

    Args:
        strata: ``(successes_a, n_a, successes_b, n_b)`` of each stratum.
        confidence: coverage aimed at, in (0, 1).

    Returns:
        The estimate, the lower and the upper bound.

    Raises:
        InputError: no stratum, or impossible counts or confidence.
    """
    rows = _rows(strata)
    check_level(confidence)
    weight = math.fsum(n * m / (n + m) for _, n, _, m in rows)
    estimate = math.fsum((x * m - y * n) / (n + m) for x, n, y, m in rows) / weight
    first = [(n * n * y - m * m * x + n * m * (m - n) / 2) / (n + m) ** 2 for x, n, y, m in rows]
    second = [(x * (m - y) + y * (n - x)) / (2 * (n + m)) for x, n, y, m in rows]
    variance = max(0.0, estimate * math.fsum(first) + math.fsum(second)) / weight**2
    half = normal_quantile(confidence) * math.sqrt(variance)
    return estimate, max(-1.0, estimate - half), min(1.0, estimate + half)


def stratified_exact(strata: Iterable[Sequence[int]]) -> float:
    """The two-sided exact conditional p-value that in every stratum both succeed equally often.

    Given the margins of every stratum, the successes of a are a sum of independent hypergeometric
    variables; the p-value sums the outcomes that are no likelier than the one observed. With one
    stratum it is Fisher's exact test. It never rejects a true null hypothesis more often than
    alpha. Source: C. R. Mehta, N. R. Patel and R. Gray, JASA 80 (1985) 969-973.

    Args:
        strata: ``(successes_a, n_a, successes_b, n_b)`` of each stratum.

    Raises:
        InputError: no stratum, or impossible counts.
        ConfigError: scipy is not installed.
    """
    rows = _rows(strata)
    chances, lowest, observed = np.ones(1), 0, 0
    for x, n, y, m in rows:
        first, pmf = _hypergeometric(int(n), int(m), int(x + y))
        chances, lowest, observed = np.convolve(chances, pmf), lowest + first, observed + x
    at = chances[observed - lowest]
    return float(min(1.0, chances[chances <= at * ROUNDING].sum()))


@lru_cache(maxsize=4096)
def _hypergeometric(n: int, m: int, yes: int) -> tuple[int, np.ndarray]:
    """The least number of a's successes among ``yes`` of all, and the chances from there on."""
    low, high = max(0, yes - m), min(n, yes)
    return low, need("stats").hypergeom.pmf(np.arange(low, high + 1), n + m, n, yes)


def _rows(strata: Iterable[Sequence[int]]) -> list[Stratum]:
    rows = [Stratum(*row) for row in strata]
    if not rows:
        raise InputError("expected at least one stratum, found none")
    for row in rows:
        check_counts(row.successes_a, row.n_a)
        check_counts(row.successes_b, row.n_b)
    return rows
