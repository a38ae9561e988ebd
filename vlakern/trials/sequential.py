"""Looking after every trial without fooling oneself: e-processes and confidence sequences.

An e-process starts at 1, is never negative and has an expectation of at most 1 at every stopping
time if the null hypothesis holds. So by Ville's inequality the chance that it ever reaches
1 / alpha is at most alpha: one may look as often as one likes, and stop for any reason.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from vlakern.errors import InputError
from vlakern.trials._check import check_counts, check_level, need

__all__ = [
    "EProcess",
    "anytime_p",
    "confidence_sequence",
    "first_crossing",
    "paired_e_process",
    "paired_log_e",
    "two_sample_e_process",
]

# Krichevsky and Trofimov's prior on the chance that a decided pair goes to the first.
HALF = 0.5
# Prior counts of each rate's success and failure; small ones learn fast (Turner et al.).
PRIOR = 0.18
BISECTIONS = 60


class EProcess(NamedTuple):
    """Natural logarithms of e-values after each pair, arrays ``[..., n]``.

    Attributes:
        different: against ``p_first = p_second`` in every pair.
        first_better: against ``p_first <= p_second`` in every pair.
        second_better: against ``p_second <= p_first`` in every pair.
    """

    different: np.ndarray
    first_better: np.ndarray
    second_better: np.ndarray


def paired_e_process(first: ArrayLike, second: ArrayLike) -> EProcess:
    """The e-processes of matched pairs: a mixture of bets on who wins the next decided pair.

    A pair that disagrees goes to the first with a chance of at most 1/2 if it succeeds no more
    often than the second there. The rates may differ from pair to pair (task, group, day, initial
    condition) and the two outcomes of a pair may depend on each other. A bet at odds ``q`` pays
    ``2q`` or ``2(1 - q)``; q is mixed over Jeffreys' Beta(1/2, 1/2), cut at 1/2 for one side, so
    that a decided pairs won and b lost give ``2^(a+b) B(a + 1/2, b + 1/2) / B(1/2, 1/2)`` for two
    sides. Sources: J. Ville, Etude critique de la notion de collectif (1939); H. Robbins, Annals
    of Mathematical Statistics 41 (1970) 1397-1409; R. E. Krichevsky and V. K. Trofimov, IEEE
    Transactions on Information Theory 27 (1981) 199-207; G. Shafer, JRSS A 184 (2021) 407-431.

    Args:
        first: outcomes 0/1 of the first model, ``[..., n]``, in the order in which pairs were
            completed.
        second: those of the second, of the same shape.

    Raises:
        InputError: outcomes that are not 0 or 1, or of two shapes.
        ConfigError: scipy is not installed.
    """
    one, other = _outcomes(first, second)
    won = np.cumsum(one & ~other, axis=-1)
    lost = np.cumsum(other & ~one, axis=-1)
    # Many streams share few counts, and the incomplete beta function is the costly part.
    span = won.shape[-1] + 1
    states, place = np.unique(won * span + lost, return_inverse=True)
    a, b = states // span, states % span
    mixed = paired_log_e(a, b)
    tail = need("special").betaincc
    above = mixed + np.log(2 * tail(a + HALF, b + HALF, 0.5))
    below = mixed + np.log(2 * tail(b + HALF, a + HALF, 0.5))
    place = place.reshape(won.shape)
    return EProcess(mixed[place], above[place], below[place])


def paired_log_e(won: ArrayLike, lost: ArrayLike) -> np.ndarray:
    """The logarithm of the two-sided e-value of so many decided pairs won and lost; elementwise.

    Raises:
        ConfigError: scipy is not installed.
    """
    a, b, special = np.asarray(won), np.asarray(lost), need("special")
    prior = special.betaln(HALF, HALF)
    return special.betaln(a + HALF, b + HALF) - prior + (a + b) * math.log(2)


def two_sample_e_process(first: ArrayLike, second: ArrayLike, prior: float = PRIOR) -> np.ndarray:
    """The e-process against ``p_first = p_second`` of one independent trial of each at a time.

    Each block's likelihood under the rates estimated from the blocks before it, over the
    likelihood under their mean. The common rate may change from block to block (group, task).
    It gains from agreeing pairs too, but is for two sides only and needs independent outcomes
    within a block. Source: R. J. Turner, A. Ly and P. D. Grünwald, Journal of Statistical Planning
    and Inference 230 (2024) 106116.

    Args:
        first: outcomes 0/1 of the first model, ``[..., n]``, block after block.
        second: those of the second, of the same shape.
        prior: counts of success and of failure that both rates start from, above 0.

    Returns:
        Natural logarithms of the e-values after each block, ``[..., n]``.

    Raises:
        InputError: outcomes that are not 0 or 1, or of two shapes, or an impossible prior.
    """
    if not 0 < prior < math.inf:
        raise InputError(f"expected a prior above 0, found {prior!r}")
    one, other = _outcomes(first, second)
    seen = np.arange(one.shape[-1])
    rates = [(np.cumsum(y, axis=-1) - y + prior) / (seen + 2 * prior) for y in (one, other)]
    common = (rates[0] + rates[1]) / 2
    gain = np.zeros(one.shape)
    for outcome, rate in zip((one, other), rates, strict=True):
        gain += np.where(outcome, np.log(rate / common), np.log((1 - rate) / (1 - common)))
    return np.cumsum(gain, axis=-1)


def first_crossing(log_e: Sequence[float] | np.ndarray, alpha: float = 0.05) -> int | None:
    """After how many pairs the e-value first reached ``1 / alpha``, None if it never did."""
    check_level(alpha, "alpha")
    crossed = np.asarray(log_e) >= -math.log(alpha)
    return int(crossed.argmax()) + 1 if crossed.any() else None


def anytime_p(log_e: Sequence[float] | np.ndarray) -> float:
    """The p-value that is valid whenever one stops: 1 over the largest e-value so far."""
    largest = float(np.max(np.asarray(log_e, dtype=float), initial=0.0))
    return math.exp(-largest)


def confidence_sequence(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bounds of a success rate that hold at every n at once, however often one looks.

    All rates p at which ``B(s + 1/2, n - s + 1/2) / (B(1/2, 1/2) p^s (1 - p)^(n - s))``, which is a
    martingale under p, stays below ``1 / (1 - confidence)``. Source: H. Robbins, Annals of
    Mathematical Statistics 41 (1970) 1397-1409.

    Raises:
        InputError: impossible counts or confidence.
        ConfigError: scipy is not installed.
    """
    check_counts(successes, n)
    check_level(confidence)
    special = need("special")
    failures = n - successes
    base = special.betaln(successes + HALF, failures + HALF) - special.betaln(HALF, HALF)
    limit = base + math.log(1 - confidence)

    def inside(rate: float) -> bool:
        return limit <= special.xlogy(successes, rate) + special.xlog1py(failures, -rate)

    rate = successes / n
    low = 0.0 if successes == 0 else _border(inside, rate, 0.0)
    high = 1.0 if failures == 0 else _border(inside, rate, 1.0)
    return low, high


def _border(inside: Callable[[float], bool], good: float, bad: float) -> float:
    """Where ``inside`` changes between ``good`` and ``bad``, on the side of ``bad``."""
    for _ in range(BISECTIONS):
        middle = (good + bad) / 2
        good, bad = (middle, bad) if inside(middle) else (good, middle)
    return bad


def _outcomes(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    one, other = np.asarray(first), np.asarray(second)
    if one.shape != other.shape or one.ndim < 1:
        raise InputError(
            "expected the outcomes of as many trials of the first as of the second, found shapes "
            f"{one.shape} and {other.shape}"
        )
    if not (np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all()):
        raise InputError("expected outcomes of 0 or 1, found another value")
    return one.astype(bool), other.astype(bool)
