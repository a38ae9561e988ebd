"""Whether the blinding held: do guesses of the model beat chance?"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlakern.errors import InputError
from vlakern.trials._check import check_level, normal_quantile, whole

__all__ = ["BlindingIndex", "bang_index", "guess_test", "james_index", "mean_bang_index"]


@dataclass(frozen=True)
class BlindingIndex:
    """A blinding index with its interval, and the number of guesses behind it."""

    n: int
    index: float
    low: float
    high: float


def bang_index(
    correct: int, wrong: int, unknown: int, models: int = 2, confidence: float = 0.95
) -> BlindingIndex:
    """Bang's blinding index of one model: 0 is chance, 1 is always right, below 0 is misled.

    With two models ``(correct - wrong) / n``, as in H. Bang, L. Ni and C. E. Davis, Controlled
    Clinical Trials 25 (2004) 143-156; with K models a wrong guess counts ``1 / (K - 1)``, so that
    guessing at random stays at 0. The interval adds two guesses at random first, as D. G. Bonett
    and R. M. Price, Journal of Educational and Behavioral Statistics 37 (2012) 479-488 do for
    paired proportions, so that it has a width where every guess is right.

    Args:
        correct: trials of the model in which it was guessed.
        wrong: trials of the model in which another was guessed.
        unknown: trials of the model in which the answer was "don't know".
        models: how many could be chosen from, at least 2.
        confidence: coverage aimed at, in (0, 1).

    Raises:
        InputError: counts that are not whole, below 0 or all 0, fewer than two models, or an
            impossible confidence.
    """
    counts = (correct, wrong, unknown)
    if not all(whole(count) and count >= 0 for count in counts) or sum(counts) < 1:
        raise InputError(f"expected whole counts of guesses, at least one guess, found {counts!r}")
    if not whole(models) or models < 2:
        raise InputError(f"expected at least 2 models to guess from, found {models!r}")
    check_level(confidence)
    others, n = models - 1, sum(counts)
    right, missed = (correct + 2 / models) / (n + 2), (wrong + 2 * others / models) / (n + 2)
    centre = right - missed / others
    variance = (right + missed / others**2 - centre**2) / (n + 2)
    half = normal_quantile(confidence) * math.sqrt(max(0.0, variance))
    index, least = (correct - wrong / others) / n, -1 / others
    return BlindingIndex(n, index, max(least, centre - half), min(1.0, centre + half))


def mean_bang_index(parts: Sequence[BlindingIndex]) -> BlindingIndex:
    """The mean of the indices of several right answers, with its interval.

    Guesses that do not depend on the right answer give 0 however often each answer was right, which
    one index over all guesses does not: "another than before" is mostly right among many models.
    The interval adds the squared distances to the parts' bounds (G. Y. Zou and A. Donner,
    Statistics in Medicine 27 (2008) 1693-1702).

    Raises:
        InputError: no part.
    """
    if not parts:
        raise InputError("expected at least one blinding index, found none")
    centre = math.fsum(part.index for part in parts) / len(parts)
    below = math.hypot(*(part.index - part.low for part in parts)) / len(parts)
    above = math.hypot(*(part.high - part.index for part in parts)) / len(parts)
    n = sum(part.n for part in parts)
    return BlindingIndex(n, centre, centre - below, min(1.0, centre + above))


def guess_test(
    guesses: Sequence[Hashable],
    truths: Sequence[Hashable],
    strata: Sequence[Hashable],
    resamples: int = 9999,
    seed: int = 0,
) -> float:
    """The one-sided permutation p-value that guesses are right no more often than by chance.

    Right answers are permuted within strata (groups), so that an answer that is right more often,
    or one that the guesser prefers, is no evidence.

    Raises:
        InputError: no guess, lists of different lengths, or fewer than 99 permutations.
    """
    if not guesses or not len(guesses) == len(truths) == len(strata) or resamples < 99:
        raise InputError(
            "expected a guess, a right answer and a stratum for each of at least one trial, and at "
            f"least 99 permutations, found {len(guesses)}, {len(truths)}, {len(strata)} and "
            f"{resamples!r}"
        )
    places = {name: index for index, name in enumerate(dict.fromkeys([*guesses, *truths]))}
    guess, truth = (np.array([places[name] for name in names]) for names in (guesses, truths))
    rng = np.random.default_rng(seed)
    drawn = np.zeros(resamples, dtype=int)
    for stratum in dict.fromkeys(strata):
        rows = np.array([index for index, name in enumerate(strata) if name == stratum])
        shuffled = rng.permuted(np.tile(truth[rows], (resamples, 1)), axis=1)
        drawn += (shuffled == guess[rows]).sum(axis=1)
    return (1 + int((drawn >= (guess == truth).sum()).sum())) / (resamples + 1)


def james_index(
    guesses: Mapping[str, Mapping[str | None, int]] | Sequence[Sequence[int]],
    confidence: float = 0.95,
) -> BlindingIndex:
    """James' blinding index of the whole study: 0 all guessed right, 0.5 chance, 1 nobody knows.

    "Don't know" weighs 1, a wrong guess 1/2, a right one 0. Source: K. E. James, D. A. Bloch,
    K. K. Lee, H. C. Kraemer and R. K. Fuller, Statistics in Medicine 15 (1996) 1421-1434. The
    standard error is the delta method's on the multinomial cells.

    Args:
        guesses: of each model the counts of guesses, by model and None for "don't know"; or rows
            of counts, one row for each model, with "don't know" last.
        confidence: coverage aimed at, in (0, 1).

    Raises:
        InputError: a table without a guess, of a wrong shape or with impossible counts.
    """
    check_level(confidence)
    table = _table(guesses)
    n = table.sum()
    index, gradient = _james(table / n)
    spread = float((table / n * gradient**2).sum() - (table / n * gradient).sum() ** 2)
    half = normal_quantile(confidence) * math.sqrt(max(0.0, spread) / n)
    return BlindingIndex(int(n), index, max(0.0, index - half), min(1.0, index + half))


def _table(
    guesses: Mapping[str, Mapping[str | None, int]] | Sequence[Sequence[int]],
) -> np.ndarray:
    """Counts ``[K, K + 1]``, "don't know" last."""
    rows: Sequence[Sequence[int]]
    if isinstance(guesses, Mapping):
        names = list(guesses)
        unknown = {key for row in guesses.values() for key in row} - {*names, None}
        if unknown:
            raise InputError(f"expected guesses among {names}, found {sorted(map(str, unknown))}")
        rows = [[row.get(key, 0) for key in (*names, None)] for row in guesses.values()]
    else:
        rows = guesses
    good = len(rows) >= 2 and all(len(row) == len(rows) + 1 for row in rows)
    if not good or not all(whole(count) and count >= 0 for row in rows for count in row):
        raise InputError(
            "expected one row of whole counts for each of at least 2 models, as many columns and "
            f'one for "don\'t know", found {[list(row) for row in rows]!r}'
        )
    table = np.array(rows, dtype=float)
    if not table.sum():
        raise InputError("expected at least one guess, found none")
    return table


def _james(share: np.ndarray) -> tuple[float, np.ndarray]:
    """The index of shares ``[K, K + 1]`` and its derivative with respect to each.

    With known = 1 - share of "don't know", observed and expected the weighted disagreement among
    those who guessed, the index is (1 + unknown + known·(observed - expected) / expected) / 2.
    """
    models = len(share)
    weights = 0.5 * (1 - np.eye(models))
    guess = share[:, :models]
    known, arms, chosen = guess.sum(), guess.sum(axis=1), guess.sum(axis=0)
    observed = float((weights * guess).sum())
    expected = float(arms @ weights @ chosen)
    if expected <= 0:
        # Every guess names one model that every guesser had, or nobody guessed.
        return 1.0 - float(known) / 2, np.zeros_like(share)
    # known·(observed/known / (expected/known²) - 1) = known²·observed/expected - known
    index = (1 + (1 - known) + known**2 * observed / expected - known) / 2
    slope = np.zeros_like(share)
    pull = (weights @ chosen)[:, None] + (arms @ weights)[None, :]
    slope[:, :models] = (
        2 * known * observed / expected
        + known**2 * weights / expected
        - known**2 * observed * pull / expected**2
        - 2
    ) / 2
    return float(index), slope
