"""Statistics of vectors and pictures: mean, deviation, range and quantiles."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vlakern.data.sketch import QuantileSketch
from vlakern.errors import InputError

# At run time it is imported where it is used: the room comes with torch, which recording needs not.
if TYPE_CHECKING:
    from vlakern.space.normalize import VectorStats

__all__ = ["QUANTILES", "PictureStats", "SlotStats", "vector_stats"]

QUANTILES: Mapping[str, float] = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
# What stands for a slot that no row had: numbers that a reader without presence survives.
ABSENT: Mapping[str, float] = {
    "mean": 0.0,
    "std": 1.0,
    **dict.fromkeys(("min", "q01", "q10"), -1.0),
    "q50": 0.0,
    **dict.fromkeys(("max", "q90", "q99"), 1.0),
}


def vector_stats(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics over N rows of ``[N, D]``: float64 ``[D]`` each, and ``count`` int64 ``[1]``.

    ``std`` divides by N; quantiles interpolate linearly between order statistics.

    Raises:
        InputError: no rows, another rank, or a value that is not finite.
    """
    if rows.ndim != 2 or len(rows) == 0:
        raise InputError(f"statistics need rows [N >= 1, D], found shape {rows.shape}")
    rows = rows.astype(np.float64)
    if not np.isfinite(rows).all():
        raise InputError("statistics need finite values, found NaN or infinity")
    quantiles = np.quantile(rows, list(QUANTILES.values()), axis=0)
    return {
        "min": rows.min(axis=0),
        "max": rows.max(axis=0),
        "mean": rows.mean(axis=0),
        "std": rows.std(axis=0),
        "count": np.array([len(rows)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


class PictureStats:
    """Statistics per colour over every pixel seen, exact because a histogram holds all of uint8."""

    def __init__(self) -> None:
        self._histogram = np.zeros((3, 256), dtype=np.int64)
        self._frames = 0

    def add(self, frames: np.ndarray) -> None:
        """Counts uint8 ``[T, H, W, 3]``."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise InputError(
                f"pictures are {frames.dtype} {frames.shape}, expected uint8 [T, H, W, 3]"
            )
        for colour in range(3):
            self._histogram[colour] += np.bincount(frames[..., colour].ravel(), minlength=256)
        self._frames += len(frames)

    def result(self) -> dict[str, np.ndarray]:
        """float64 ``[3, 1, 1]`` each, in [0, 1], and ``count`` (frames) int64 ``[1]``."""
        if self._frames == 0:
            raise InputError("statistics need at least one picture, found none")
        levels = np.arange(256) / 255.0
        total = self._histogram.sum(axis=1)
        mean = self._histogram @ levels / total
        variance = self._histogram @ levels**2 / total - mean**2
        seen = [levels[row > 0] for row in self._histogram]
        values = {
            "min": [row[0] for row in seen],
            "max": [row[-1] for row in seen],
            "mean": mean,
            "std": np.sqrt(np.maximum(variance, 0.0)),
            **{name: self._quantile(q) for name, q in QUANTILES.items()},
        }
        shaped = {name: np.asarray(value).reshape(3, 1, 1) for name, value in values.items()}
        return {**shaped, "count": np.array([self._frames])}

    def _quantile(self, q: float) -> list[float]:
        """Linear interpolation between order statistics, as numpy's default does."""
        result = []
        for row in self._histogram:
            below = np.cumsum(row)
            rank = q * (below[-1] - 1)
            low, high = np.searchsorted(below, [np.floor(rank), np.ceil(rank)], side="right")
            result.append((low + (high - low) * (rank - np.floor(rank))) / 255.0)
        return result


class SlotStats:
    """Statistics per slot of rows that arrive in parts and from several places.

    A row counts for the slots that are present in it. Count, min and max are exact; mean and
    deviation (dividing by the count) follow the pairwise update of Chan, Golub and LeVeque (1979)
    in float64, so that the order of adding and merging changes them by less than 1e-12 of the
    largest number; quantiles are a :class:`QuantileSketch`'s, the same in any order. A slot that
    never moved has exactly its value as mean and no deviation.

    Rows are what the network will see: transform poses to their frame first, then add them. The
    quantiles of a transformed vector are not the transformed quantiles of the vector.

    Args:
        names: one per slot.

    Raises:
        InputError: no names, or one twice.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        width = len(self.names)
        if not width or len(set(self.names)) != width:
            raise InputError(f"statistics need slots with different names, found {self.names}")
        self._rows = 0
        self._count = np.zeros(width, dtype=np.int64)
        self._mean, self._squares = np.zeros(width), np.zeros(width)
        self._low, self._high = np.full(width, np.inf), np.full(width, -np.inf)
        self._sketches = [QuantileSketch() for _ in range(width)]

    @property
    def rows(self) -> int:
        """Rows added, whatever slots they had."""
        return self._rows

    @property
    def count(self) -> np.ndarray:
        """int64 ``[A]``: rows that had the slot."""
        return self._count.copy()

    def add(self, rows: np.ndarray, present: np.ndarray | None = None) -> None:
        """Adds rows ``[N, A]``; ``present`` is bool ``[A]`` or ``[N, A]``, and all if left out.

        What stands in a slot that is not present does not matter.

        Raises:
            InputError: another shape, or a value that is not finite, naming the slot.
        """
        mask = self._mask(rows, present)
        bad = mask & ~np.isfinite(rows)
        if bad.any():
            row, slot = np.argwhere(bad)[0]
            raise InputError(
                f"slot {slot} ({self.names[slot]}) is not finite in row {row}: leave that episode"
                " out, or mark the slot as not present"
            )
        wide = np.where(mask, rows, 0).astype(np.float64)
        count = mask.sum(axis=0)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = wide.sum(axis=0) / np.maximum(count, 1)
            squares = (np.where(mask, wide - mean, 0.0) ** 2).sum(axis=0)
        low = np.where(mask, wide, np.inf).min(axis=0, initial=np.inf)
        high = np.where(mask, wide, -np.inf).max(axis=0, initial=-np.inf)
        self._update(len(rows), count, mean, squares, low, high)
        for sketch, column, chosen in zip(self._sketches, wide.T, mask.T, strict=True):
            sketch.add(column[chosen])

    def merge(self, other: "SlotStats") -> None:
        """Adds all that the other has seen; the other stays as it is.

        Raises:
            ConfigError: other slots, naming the first that differs.
        """
        from vlakern.space.normalize import check_names

        check_names(other.names, self.names, "merging statistics")
        moments = (other._mean, other._squares, other._low, other._high)
        self._update(other._rows, other._count, *moments)
        for mine, theirs in zip(self._sketches, other._sketches, strict=True):
            mine.merge(theirs)

    def summary(self) -> dict[str, np.ndarray]:
        """``count`` int64 ``[A]`` and, float64 ``[A]``, mean, std, min, max and QUANTILES.

        Raises:
            InputError: no rows, or numbers whose deviation leaves float64, naming the slot.
        """
        if not self._rows:
            raise InputError("statistics need at least one row, found none")
        seen, still = self._count > 0, self._low == self._high
        variance = self._squares / np.maximum(self._count, 1)
        values = {
            "mean": np.where(still, self._low, self._mean),
            "std": np.where(still, 0.0, np.sqrt(variance)),
            "min": self._low,
            "max": self._high,
        }
        lost = seen & ~np.isfinite(values["std"])
        if lost.any():
            name = self.names[int(np.flatnonzero(lost)[0])]
            raise InputError(f"slot {name} has numbers too large for statistics in float64")
        for name, q in QUANTILES.items():
            values[name] = np.array([s.quantile(q) if s.count else 0.0 for s in self._sketches])
        filled = {name: np.where(seen, value, ABSENT[name]) for name, value in values.items()}
        return {**filled, "count": self.count}

    def result(self) -> "VectorStats":
        """What a normaliser needs; raises as :meth:`summary`."""
        from vlakern.space.normalize import VectorStats

        values = self.summary()
        seen = tuple(bool(count) for count in self._count)
        fields = ("mean", "std", "min", "max", "q01", "q99")
        return VectorStats(
            *(tuple(values[field].tolist()) for field in fields),
            names=self.names,
            present=() if all(seen) else seen,
        )

    def _mask(self, rows: np.ndarray, present: np.ndarray | None) -> np.ndarray:
        width = len(self.names)
        if rows.ndim != 2 or rows.shape[1] != width:
            raise InputError(f"rows are {rows.shape}, expected [N, {width}]")
        mask = np.ones(width, dtype=bool) if present is None else np.asarray(present)
        if mask.dtype != bool or mask.shape not in ((width,), rows.shape):
            raise InputError(
                f"presence is {mask.dtype} {mask.shape}, expected bool ({width},) or {rows.shape}"
            )
        return np.broadcast_to(mask, rows.shape)

    def _update(
        self,
        rows: int,
        count: np.ndarray,
        mean: np.ndarray,
        squares: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
    ) -> None:
        total = self._count + count
        share = count / np.maximum(total, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            step = mean - self._mean
            self._squares = self._squares + squares + step**2 * share * self._count
            self._mean = self._mean + step * share
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        self._rows, self._count = self._rows + rows, total
