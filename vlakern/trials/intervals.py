"""Confidence intervals of a success rate."""

import math
from statistics import NormalDist

from vlakern.errors import InputError

__all__ = ["wilson"]


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
    if not _whole(successes) or not _whole(n) or n < 1 or not 0 <= successes <= n:
        raise InputError(
            f"expected whole numbers with 0 <= successes <= n and n >= 1, "
            f"found successes={successes!r} and n={n!r}"
        )
    if not 0.0 < confidence < 1.0:
        raise InputError(f"expected a confidence between 0 and 1, found {confidence!r}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    shrink = 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # The algebra gives exactly 0 and 1 at the ends; rounding would not.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
