"""Exact statistics of vectors and pictures: mean, deviation, range and quantiles."""

from collections.abc import Mapping

import numpy as np

from vlakern.errors import InputError

__all__ = ["QUANTILES", "PictureStats", "vector_stats"]

QUANTILES: Mapping[str, float] = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


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
