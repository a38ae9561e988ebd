"""Intervals of one success rate, of the difference of two, and of a difference over strata."""

import math
from collections.abc import Iterable, Sequence

from vlakern.errors import InputError
from vlakern.trials._check import (
    check_counts,
    check_level,
    check_pairs,
    need,
    normal_quantile,
)

__all__ = ["beta", "bounded_mean", "newcombe", "newcombe_paired", "newcombe_stratified", "wilson"]

JEFFREYS = (0.5, 0.5)


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a success rate, without continuity correction.

    Unlike the textbook ``p ± z·sqrt(p(1-p)/n)`` it stays inside [0, 1] and keeps a width at 0 and
    at n successes. Source: E. B. Wilson, JASA 22 (1927) 209-212; in the form of L. D. Brown,
    T. T. Cai and A. DasGupta, Statistical Science 16 (2001) 101-133, equation (4).

    Args:
        successes: number of successes, ``0 <= successes <= n``.
        n: number of trials, at least 1.
        confidence: coverage aimed at, in (0, 1).

    Returns:
        The lower and the upper bound, as fractions.

    Raises:
        InputError: counts that are not whole numbers with ``0 <= successes <= n`` and ``n >= 1``,
            or a confidence outside (0, 1).
    """
    check_counts(successes, n)
    check_level(confidence)
    return _score(successes, n, confidence)


def bounded_mean(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """A conservative score interval of the mean of values in [0, 1], such as rubric progress.

    No variable in [0, 1] of mean m varies more than ``m(1 - m)``, which is what a success varies;
    so Wilson's interval with the sum of the values as successes covers at least as often. Of zeros
    and ones it is :func:`wilson`, and it has a width where all values are equal.

    Raises:
        InputError: no value, one outside [0, 1], or an impossible confidence.
    """
    check_level(confidence)
    if not values or not all(0 <= value <= 1 for value in values):
        raise InputError(f"expected values in [0, 1], at least one, found {list(values)!r}")
    return _score(math.fsum(values), len(values), confidence)


def _score(successes: float, n: int, confidence: float) -> tuple[float, float]:
    z = normal_quantile(confidence)
    rate = successes / n
    shrink = 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # The algebra gives exactly 0 and 1 at the ends; rounding would not.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def beta(
    successes: int,
    n: int,
    confidence: float = 0.95,
    prior: tuple[float, float] = JEFFREYS,
) -> tuple[float, float]:
    """The equal-tailed credible interval of a success rate under a Beta prior.

    The posterior is ``Beta(a + successes, b + n - successes)``. With Jeffreys' prior (1/2, 1/2)
    the lower bound at 0 successes is 0 and the upper bound at n is 1, as in Brown, Cai and
    DasGupta, Statistical Science 16 (2001) 101-133, section 4.1.2.

    Args:
        successes: number of successes, ``0 <= successes <= n``.
        n: number of trials, at least 1.
        confidence: posterior probability between the bounds, in (0, 1).
        prior: the prior's ``a`` and ``b``, both above 0; (1, 1) is uniform.

    Returns:
        The lower and the upper bound, as fractions.

    Raises:
        InputError: impossible counts, confidence or prior.
        ConfigError: scipy is not installed.
    """
    check_counts(successes, n)
    check_level(confidence)
    a, b = prior
    if not (0 < a < math.inf and 0 < b < math.inf):
        raise InputError(f"expected two positive numbers as the Beta prior, found {prior!r}")
    inverse = need("special").betaincinv
    a, b, tail = a + successes, b + n - successes, (1 - confidence) / 2
    low = 0.0 if successes == 0 and prior == JEFFREYS else float(inverse(a, b, tail))
    high = 1.0 if successes == n and prior == JEFFREYS else float(inverse(a, b, 1 - tail))
    return low, high


def newcombe(
    successes_a: int, n_a: int, successes_b: int, n_b: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Newcombe's hybrid score interval of ``p_a - p_b`` of two independent samples.

    Source: R. G. Newcombe, Statistics in Medicine 17 (1998) 873-890, method 10.

    Returns:
        The lower and the upper bound, in [-1, 1]; never of width 0.

    Raises:
        InputError: impossible counts or confidence.
    """
    low_a, high_a = wilson(successes_a, n_a, confidence)
    low_b, high_b = wilson(successes_b, n_b, confidence)
    rate_a, rate_b = successes_a / n_a, successes_b / n_b
    difference = rate_a - rate_b
    low = difference - math.hypot(rate_a - low_a, high_b - rate_b)
    high = difference + math.hypot(high_a - rate_a, rate_b - low_b)
    return max(-1.0, low), min(1.0, high)


def newcombe_paired(
    both: int, first: int, second: int, neither: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Newcombe's hybrid score interval of ``p_first - p_second`` of paired outcomes.

    Source: R. G. Newcombe, Statistics in Medicine 17 (1998) 2635-2650, method 10, with its
    correction of the correlation towards 0.

    Args:
        both: pairs in which both succeeded.
        first: pairs in which only the first succeeded.
        second: pairs in which only the second succeeded.
        neither: pairs in which both failed.
        confidence: coverage aimed at, in (0, 1).

    Returns:
        The lower and the upper bound, in [-1, 1].

    Raises:
        InputError: counts that are no table of pairs, or an impossible confidence.
    """
    check_pairs(both, first, second, neither)
    n = both + first + second + neither
    yes_a, yes_b = both + first, both + second
    low_a, high_a = wilson(yes_a, n, confidence)
    low_b, high_b = wilson(yes_b, n, confidence)
    rate_a, rate_b = yes_a / n, yes_b / n
    phi = _correlation(both, first, second, neither)
    below, above = (rate_a - low_a, high_b - rate_b), (high_a - rate_a, rate_b - low_b)
    difference = (first - second) / n
    low = difference - math.sqrt(below[0] ** 2 - 2 * phi * below[0] * below[1] + below[1] ** 2)
    high = difference + math.sqrt(above[0] ** 2 - 2 * phi * above[0] * above[1] + above[1] ** 2)
    return max(-1.0, low), min(1.0, high)


def _correlation(both: int, first: int, second: int, neither: int) -> float:
    n = both + first + second + neither
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    if product == 0:
        return 0.0
    cross = both * neither - first * second
    if cross > 0:
        cross = max(cross - n / 2, 0)
    return cross / math.sqrt(product)


def newcombe_stratified(
    strata: Iterable[tuple[int, int, int, int]], confidence: float = 0.95
) -> tuple[float, float, float]:
    """The difference ``p_a - p_b`` common to several strata, with a hybrid score interval.

    The estimate is the Mantel-Haenszel risk difference: strata weigh ``n_a·n_b/(n_a + n_b)``. The
    interval recovers each stratum's variance from its Newcombe interval (G. Y. Zou and A. Donner,
    Statistics in Medicine 27 (2008) 1693-1702), so that it has a width where the usual variance
    estimate is 0; with one stratum it is :func:`newcombe`.

    Args:
        strata: ``(successes_a, n_a, successes_b, n_b)`` of each stratum.
        confidence: coverage aimed at, in (0, 1).

    Returns:
        The estimate, the lower and the upper bound.

    Raises:
        InputError: no stratum, or impossible counts or confidence.
    """
    rows = list(strata)
    if not rows:
        raise InputError("expected at least one stratum, found none")
    bounds = [newcombe(*row, confidence) for row in rows]
    weights = [n_a * n_b / (n_a + n_b) for _, n_a, _, n_b in rows]
    weights = [weight / sum(weights) for weight in weights]
    differences = [x_a / n_a - x_b / n_b for x_a, n_a, x_b, n_b in rows]
    estimate = math.fsum(w * d for w, d in zip(weights, differences, strict=True))
    parts = list(zip(weights, differences, bounds, strict=True))
    below = math.hypot(*(w * (d - low) for w, d, (low, _) in parts))
    above = math.hypot(*(w * (high - d) for w, d, (_, high) in parts))
    return estimate, max(-1.0, estimate - below), min(1.0, estimate + above)
