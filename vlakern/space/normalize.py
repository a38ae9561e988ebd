"""Normalisation of state and action vectors from dataset statistics."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vlakern.errors import ConfigError, InputError

__all__ = ["Normalizer", "VectorStats"]

Mode = Literal["zscore", "quantile", "min_max", "none"]
FIELDS = ("mean", "std", "min", "max", "q01", "q99")
# A slot that never moves has no scale; dividing by this instead keeps its encoding finite.
SMALLEST_SCALE = 1e-3


@dataclass(frozen=True)
class VectorStats:
    """Statistics of one feature over a dataset, one number per slot."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]

    @property
    def width(self) -> int:
        """Number of slots."""
        return len(self.mean)

    @classmethod
    def from_json(cls, values: Any, where: str) -> "VectorStats":
        """Reads ``{"mean": [...], ...}``; every list must be as long as the mean and finite."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}: expected an object with {', '.join(FIELDS)}")
        lists = {}
        for field in FIELDS:
            numbers = values.get(field)
            if not isinstance(numbers, Sequence) or not all(_finite(n) for n in numbers):
                raise ConfigError(f"{where}.{field}: expected a list of finite numbers")
            lists[field] = tuple(float(n) for n in numbers)
        widths = {field: len(numbers) for field, numbers in lists.items()}
        if len(set(widths.values())) != 1:
            raise ConfigError(f"{where}: lists of one length expected, found {widths}")
        return cls(**lists)

    def to_json(self) -> dict[str, list[float]]:
        """The inverse of :meth:`from_json`."""
        return {field: list(getattr(self, field)) for field in FIELDS}


@dataclass(frozen=True)
class Normalizer:
    """An affine map per slot: ``encode(x) = (x - offset) / scale`` and its exact inverse.

    Attributes:
        name: of the vector, for messages.
        mode: ``zscore`` (mean, std), ``quantile`` (q01 and q99 to -1 and 1), ``min_max`` (min and
            max to -1 and 1) or ``none``.
    """

    name: str
    mode: Mode
    stats: VectorStats

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Native units to normalised, float32 ``[..., S]``.

        Raises:
            InputError: on a width other than the statistics' or a value that is not finite.
        """
        self._check(x)
        offset, scale = self._affine()
        return ((x - offset) / scale).astype(np.float32)

    def decode(self, x: np.ndarray) -> np.ndarray:
        """Normalised to native units, float32 ``[..., S]``."""
        self._check(x)
        offset, scale = self._affine()
        return (x * scale + offset).astype(np.float32)

    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        stats = self.stats
        if self.mode == "none":
            return np.zeros(stats.width), np.ones(stats.width)
        if self.mode == "zscore":
            return np.array(stats.mean), np.maximum(np.array(stats.std), SMALLEST_SCALE)
        low, high = (stats.q01, stats.q99) if self.mode == "quantile" else (stats.min, stats.max)
        half = (np.array(high) - np.array(low)) / 2
        return np.array(low) + half, np.maximum(half, SMALLEST_SCALE)

    def _check(self, x: np.ndarray) -> None:
        if x.shape[-1] != self.stats.width:
            raise InputError(
                f"{self.name} has {x.shape[-1]} slots, expected {self.stats.width}: the policy's"
                " statistics were made for another embodiment"
            )
        if not np.isfinite(x).all():
            slot = int(np.argwhere(~np.isfinite(x))[0][-1])
            raise InputError(
                f"{self.name} slot {slot} is not finite; check the sensor or the model"
            )


def _finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and math.isfinite(number)
