"""Quantiles of a stream of numbers, mergeable and independent of order."""

import numpy as np

from vlakern.errors import InputError

__all__ = ["QuantileSketch"]

EXACT = 2048
# A bucket shares sign, exponent and the first MANTISSA bits: it is 2**-9 of its numbers wide.
MANTISSA = 9


class QuantileSketch:
    """The numbers themselves while there are few, then what falls into each of many buckets.

    A number's bucket is its sign, its exponent and the leading 9 bits of its mantissa: integer
    arithmetic, so the state depends on the numbers alone, not on their order nor on how they were
    divided and merged. A bucket keeps its count, its smallest and its largest number.

    Up to 2048 numbers, quantiles are exact. Beyond, an order statistic is taken as the middle of
    its bucket's smallest and largest number: within ``2**-10`` (0.098 %) of its own size for normal
    float64, and exact where a bucket holds one number many times, as a gripper's does. A quantile
    interpolates linearly between two order statistics, as numpy does.
    """

    def __init__(self) -> None:
        self._loose: list[np.ndarray] = []
        self._size = 0
        self._keys, self._counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        self._lows, self._highs = np.zeros(0), np.zeros(0)

    @property
    def count(self) -> int:
        """How many numbers it has seen."""
        return self._size + int(self._counts.sum())

    def add(self, numbers: np.ndarray) -> None:
        """Takes finite numbers ``[N]``; the caller has checked them."""
        if len(numbers):
            self._loose.append(numbers.astype(np.float64))
            self._size += len(numbers)
            self._compress(EXACT)

    def merge(self, other: "QuantileSketch") -> None:
        """Takes what the other has seen; the other stays as it is."""
        self._loose = [*self._loose, *other._loose]
        self._size += other._size
        self._collect(other._keys, other._counts, other._lows, other._highs)
        self._compress(EXACT)

    def quantile(self, q: float) -> float:
        """The number at rank ``q (count - 1)``, interpolated between its two neighbours.

        Raises:
            InputError: no numbers, or q outside [0, 1].
        """
        if not 0.0 <= q <= 1.0:
            raise InputError(f"a quantile is between 0 and 1, found {q}")
        if not self.count:
            raise InputError("a quantile needs at least one number, found none")
        if self.count <= EXACT:
            return float(np.quantile(np.concatenate(self._loose), q))
        self._compress(0)
        below = np.cumsum(self._counts)
        rank = q * (below[-1] - 1)
        at = np.searchsorted(below, [np.floor(rank), np.ceil(rank)], side="right")
        low, high = self._lows[at] + (self._highs[at] - self._lows[at]) / 2
        return float(low + (high - low) * (rank - np.floor(rank)))

    def _compress(self, limit: int) -> None:
        """Moves the loose numbers into buckets if they are more than the limit."""
        if self._size > limit:
            numbers = np.concatenate(self._loose)
            self._collect(_key(numbers), np.ones(len(numbers), dtype=np.int64), numbers, numbers)
            self._loose, self._size = [], 0

    def _collect(self, *columns: np.ndarray) -> None:
        """Adds keys, counts, lows and highs to the buckets."""
        mine = (self._keys, self._counts, self._lows, self._highs)
        keys, *rest = (np.concatenate(pair) for pair in zip(mine, columns, strict=True))
        if not len(keys):
            return
        order = np.argsort(keys, kind="stable")
        keys, counts, lows, highs = (column[order] for column in (keys, *rest))
        starts = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
        self._keys, self._counts = keys[starts], np.add.reduceat(counts, starts)
        self._lows = np.minimum.reduceat(lows, starts)
        self._highs = np.maximum.reduceat(highs, starts)


def _key(numbers: np.ndarray) -> np.ndarray:
    """int64 per float64, in the numbers' order."""
    buckets = np.abs(numbers).view(np.int64) >> (52 - MANTISSA)
    return np.where(numbers < 0, -buckets, buckets)
