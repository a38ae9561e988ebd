"""Normalisation of state and action vectors from dataset statistics."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

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

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError(
                f"{self.name}: no normalisation {self.mode!r}; use one of"
                f" {', '.join(get_args(Mode))}"
            )

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Native units to normalised, float32 ``[..., S]``.

        Raises:
            InputError: on a width other than the statistics' or a value that is not finite, before
                or after.
        """
        self._check(x)
        offset, scale = self._affine()
        return self._narrow((x - offset) / scale)

    def decode(self, x: np.ndarray) -> np.ndarray:
        """Normalised to native units, float32 ``[..., S]``; raises as :meth:`encode`."""
        self._check(x)
        offset, scale = self._affine()
        return self._narrow(x * scale + offset)

    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        stats = self.stats
        if self.mode == "none":
            return np.zeros(stats.width), np.ones(stats.width)
        if self.mode == "zscore":
            return np.array(stats.mean), np.maximum(np.array(stats.std), SMALLEST_SCALE)
        low, high = (stats.q01, stats.q99) if self.mode == "quantile" else (stats.min, stats.max)
        half = (np.array(high) - np.array(low)) / 2
        return np.array(low) + half, np.maximum(half, SMALLEST_SCALE)

    def _narrow(self, wide: np.ndarray) -> np.ndarray:
        """float32 of float64; a finite number can leave its range."""
        limit = np.finfo(np.float32).max
        if (np.abs(wide) > limit).any():
            slot = int(np.argwhere(np.abs(wide) > limit)[0][-1])
            raise InputError(f"{self.name} slot {slot} is too large for the policy's statistics")
        return wide.astype(np.float32)

    def _check(self, x: np.ndarray) -> None:
        found = x.shape[-1] if x.ndim else 0
        if found != self.stats.width:
            raise InputError(
                f"{self.name} has {found} slots, expected {self.stats.width}: the policy's"
                " statistics were made for another embodiment"
            )
        if not np.isfinite(x).all():
            slot = int(np.argwhere(~np.isfinite(x))[0][-1])
            raise InputError(
                f"{self.name} slot {slot} is not finite; check the sensor or the model"
            )


def _finite(number: Any) -> bool:
    """Whether a JSON value is a number that fits a float."""
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return False
    return abs(number) <= sys.float_info.max
