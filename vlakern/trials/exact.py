"""Exact tests of two success rates, for independent and for paired trials."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from vlakern.errors import InputError
from vlakern.trials._check import check_counts, check_pairs, need

__all__ = ["McNemar", "boschloo", "boschloo_table", "mcnemar"]

# Values of the unknown common rate at which the rejection probability is looked at. In
# p = sin²(t) its curvature is at most about 4·(n_a + n_b), so 513 leave an error near 1e-4.
NUISANCE = 513
LARGEST = 300
# Fisher's p-values that differ by rounding alone are one value.
ROUNDING = 1 + 1e-9


class McNemar(NamedTuple):
    """Two-sided p-values of the comparison of paired outcomes.

    Attributes:
        exact: never rejects a true null hypothesis more often than alpha.
        mid_p: nearer to alpha and so more powerful, without that guarantee.
    """

    exact: float
    mid_p: float


def mcnemar(first: int, second: int) -> McNemar:
    """McNemar's exact test: given a pair that disagrees, each order is equally likely.

    Source: Q. McNemar, Psychometrika 12 (1947) 153-157; the mid-p version M. W. Fagerland,
    S. Lydersen and P. Laake, BMC Medical Research Methodology 13 (2013) 91.

    Args:
        first: pairs in which only the first succeeded.
        second: pairs in which only the second succeeded.

    Returns:
        Both p-values; 1 where no pair disagrees.

    Raises:
        InputError: counts that are not whole or below 0.
    """
    if first == second == 0:
        return McNemar(1.0, 1.0)
    check_pairs(0, first, second, 0)
    n, low = first + second, min(first, second)
    tail = sum(math.comb(n, k) for k in range(low + 1)) / 2**n
    at = math.comb(n, low) / 2**n
    exact = min(1.0, 2 * tail)
    mid = 1.0 if first == second else 2 * tail - at
    return McNemar(exact, mid)


def boschloo(successes_a: int, n_a: int, successes_b: int, n_b: int) -> float:
    """The two-sided p-value of Boschloo's exact unconditional test of ``p_a = p_b``.

    Fisher's p-value is the statistic; its distribution is taken at the common rate that makes the
    observed one likeliest to be met or undercut. Uniformly more powerful than Fisher's test.
    Two-sided is twice the smaller side. Source: R. D. Boschloo, Statistica Neerlandica 24 (1970)
    1-35.

    Raises:
        InputError: impossible counts, or more than 300 trials in a sample.
        ConfigError: scipy is not installed.
    """
    check_counts(successes_a, n_a)
    check_counts(successes_b, n_b)
    return float(boschloo_table(int(n_a), int(n_b))[successes_a, successes_b])


@lru_cache(maxsize=64)
def boschloo_table(n_a: int, n_b: int) -> np.ndarray:
    """The p-values of :func:`boschloo` of every pair of counts, ``[n_a + 1, n_b + 1]``, read-only.

    Raises:
        InputError: a size that is not a whole number in 1..300.
        ConfigError: scipy is not installed.
    """
    check_counts(0, n_a)
    check_counts(0, n_b)
    if max(n_a, n_b) > LARGEST:
        raise InputError(
            f"expected at most {LARGEST} trials in a sample for Boschloo's test, found {n_a} and "
            f"{n_b}; compare such samples by the stratified test"
        )
    greater = _one_sided(n_a, n_b)
    # p_a < p_b in (x_a, x_b) is p_a > p_b in the counts of failures.
    less = greater[::-1, ::-1]
    table = np.minimum(1.0, 2 * np.minimum(greater, less))
    table.flags.writeable = False
    return table


def _one_sided(n_a: int, n_b: int) -> np.ndarray:
    """P-values against ``p_a > p_b``, ``[n_a + 1, n_b + 1]``."""
    stats = need("stats")
    x_a, x_b = np.arange(n_a + 1), np.arange(n_b + 1)
    total = x_a[:, None] + x_b
    fisher = stats.hypergeom.sf(x_a[:, None] - 1, n_a + n_b, n_a, total).ravel()
    order = np.argsort(fisher, kind="stable")
    ranked = fisher[order]
    # Each p-value counts every table whose own is not larger, ties included.
    last = np.searchsorted(ranked, ranked * ROUNDING, side="right") - 1
    rates = np.sin(np.linspace(0, np.pi / 2, NUISANCE)) ** 2
    worst = np.zeros(len(order))
    for rate in rates:
        joint = np.outer(stats.binom.pmf(x_a, n_a, rate), stats.binom.pmf(x_b, n_b, rate))
        np.maximum(worst, np.cumsum(joint.ravel()[order]), out=worst)
    found = np.empty(len(order))
    found[order] = np.minimum(1.0, worst[last])
    return found.reshape(n_a + 1, n_b + 1)
