"""Agreement of two judges beyond chance."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from vlakern.errors import InputError
from vlakern.trials._check import check_level, normal_quantile
from vlakern.trials.intervals import wilson

__all__ = ["Kappa", "cohen_kappa"]


class Kappa(NamedTuple):
    """Cohen's kappa of two judges.

    Attributes:
        n: trials that both judged.
        agreement: the share on which they agree.
        kappa: agreement beyond chance, 1 at most; None where each judge gave everything one and
            the same verdict, so that chance explains all.
        standard_error: the large-sample one, None with kappa.
        low: lower bound of kappa, None with kappa.
        high: upper bound.
    """

    n: int
    agreement: float
    kappa: float | None
    standard_error: float | None
    low: float | None
    high: float | None


def cohen_kappa(
    first: Sequence[Hashable], second: Sequence[Hashable], confidence: float = 0.95
) -> Kappa:
    """Cohen's kappa of the verdicts of two judges on the same trials.

    Source: J. Cohen, Educational and Psychological Measurement 20 (1960) 37-46; the standard error
    J. L. Fleiss, J. Cohen and B. S. Everitt, Psychological Bulletin 72 (1969) 323-327. Each bound
    is the wider of that standard error's and of the Wilson interval of the observed agreement, so
    that perfect agreement in ten trials still has a lower bound below 1.

    Raises:
        InputError: no trial, lists of two lengths, or an impossible confidence.
    """
    check_level(confidence)
    n = len(first)
    if n < 1 or n != len(second):
        raise InputError(
            f"expected the verdicts of two judges on the same trials, found {n} and {len(second)}"
        )
    names = list(dict.fromkeys([*first, *second]))
    share = np.zeros((len(names), len(names)))
    for one, other in zip(first, second, strict=True):
        share[names.index(one), names.index(other)] += 1 / n
    agreed = round(share.trace() * n)
    chance = float(share.sum(axis=1) @ share.sum(axis=0))
    if 1 - chance < 1e-12:
        return Kappa(n, agreed / n, None, None, None, None)
    kappa = (agreed / n - chance) / (1 - chance)
    error = _standard_error(share, kappa, chance, n)
    half = normal_quantile(confidence) * error
    low, high = ((bound - chance) / (1 - chance) for bound in wilson(agreed, n, confidence))
    low, high = max(-1.0, min(low, kappa - half)), min(1.0, max(high, kappa + half))
    return Kappa(n, agreed / n, kappa, error, low, high)


def _standard_error(share: np.ndarray, kappa: float, chance: float, n: int) -> float:
    """Equation (13) of Fleiss, Cohen and Everitt."""
    rows, columns = share.sum(axis=1), share.sum(axis=0)
    on = np.diag(share) @ (1 - (rows + columns) * (1 - kappa)) ** 2
    crossed = share * (columns[:, None] + rows[None, :]) ** 2
    off = (1 - kappa) ** 2 * (crossed.sum() - np.trace(crossed))
    variance = on + off - (kappa - chance * (1 - kappa)) ** 2
    return math.sqrt(max(0.0, float(variance))) / ((1 - chance) * math.sqrt(n))
