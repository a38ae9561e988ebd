"""Normalisation of state and action vectors from dataset statistics."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from vlakern.errors import ConfigError, InputError
from vlakern.space.arrays import read_array
from vlakern.space.vector_stats import VectorStats, check_names

__all__ = ["Epsilon", "Mode", "Normalizer", "VectorStats", "check_names"]

Mode = Literal["zscore", "quantile", "min_max", "binary", "threshold", "none"]
Epsilon = Literal["vlakern", "openpi", "lerobot", "beingh"]
# A slot that never moves has no scale; dividing by this instead keeps its encoding finite.
SMALLEST_SCALE = 1e-3
OPENPI_EPSILON = 1e-6
LEROBOT_EPSILON = 1e-8
# Of the distance between the two values; fp16 storage of a value costs up to 5e-4 of it.
BINARY_TOLERANCE = 1e-3
# Whatever is divided by it is 0 in fp32.
LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True, eq=False)
class _Map:
    """encode(x) = (x - origin) / divisor - shift; decode(x) = x * scale + offset; float64 [S]."""

    origin: np.ndarray
    divisor: np.ndarray
    shift: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    binary: np.ndarray
    threshold: np.ndarray
    clipped: np.ndarray


@dataclass(frozen=True)
class Normalizer:
    """An affine map per slot, and its inverse.

    In float64, ``decode(encode(x))`` differs from ``x`` by at most four roundings of the numbers
    involved: ``4 * 2**-52 * (|x| + |offset| + scale)``. Without normalisation it is ``x``; for a
    binary slot it is exactly one of its two values. Exceptions are kept for parity: LeRobot's
    z-score divides by ``std + 1e-8`` and multiplies by ``std``; Being-H clips quantiles to [-1, 1]
    and does not undo what it does to slots that never moved.

    With ``zero`` being the smallest scale, 1e-3, and ``half = (high - low) / 2``, encode is

    ======== ============================ ====================== ===================================
    epsilon  zscore                       quantile, min_max      source
    ======== ============================ ====================== ===================================
    vlakern  (x - mean) / max(std, zero)  (x - low - half) /     never moved: 0, and finite near it
                                          max(half, zero)
    openpi   (x - mean) / (std + 1e-6)    2 (x - low) /          openpi, ``transforms.py``
                                          (high - low + 1e-6)
                                          - 1
    lerobot  (x - mean) / (std + 1e-8)    2 (x - low) /          LeRobot, ``normalize_processor.py``
                                          (high - low) - 1,
                                          1e-8 where that is 0
    beingh   (x - mean) / std, x where    2 (x - low) /          Being-H, ``state_action.py``
             that is 0                    (high - low) - 1;
                                          where that is 0, x
                                          (quantile) or 0
    ======== ============================ ====================== ===================================

    A binary slot has two values, the statistics' min and max, which become -1 and +1; decode takes
    max for a positive number and min otherwise. A slot of mode threshold is 1 above one half and 0
    otherwise, on both sides.

    Attributes:
        name: of the vector, for messages.
        modes: one for all slots, or one per slot: ``zscore`` (mean, std), ``quantile`` (q01 and
            q99 to -1 and 1), ``min_max`` (min and max to -1 and 1), ``binary``,
            ``threshold`` or ``none``.
        stats: a slot that is absent from them stays as it is.

    Raises:
        ConfigError: an unknown mode or epsilon, another number of modes than slots, a binary slot
            with one value, a negative deviation or range.
    """

    name: str
    modes: Mode | Sequence[Mode]
    stats: VectorStats
    epsilon: Epsilon = "vlakern"
    _map: _Map = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        width = self.stats.width
        if not isinstance(self.modes, (str, list, tuple)):
            raise ConfigError(
                f"{self.name}: modes is {self.modes!r}, expected one of"
                f" {', '.join(get_args(Mode))}, or a list with one per slot"
            )
        modes = (self.modes,) * width if isinstance(self.modes, str) else tuple(self.modes)
        for mode in (self.modes,) if isinstance(self.modes, str) else modes:
            if mode not in get_args(Mode):
                raise ConfigError(
                    f"{self.name}: no normalisation {mode!r}; use one of"
                    f" {', '.join(get_args(Mode))}"
                )
        if len(modes) != width:
            raise ConfigError(f"{self.name}: {len(modes)} modes for {width} slots; give one each")
        if self.epsilon not in get_args(Epsilon):
            raise ConfigError(
                f"{self.name}: no epsilon {self.epsilon!r}; use one of"
                f" {', '.join(get_args(Epsilon))}"
            )
        object.__setattr__(self, "modes", modes)
        with np.errstate(over="ignore", invalid="ignore"):
            object.__setattr__(self, "_map", self._build(np.array(modes, dtype=str)))

    @property
    def binary(self) -> np.ndarray:
        """bool ``[S]``: slots that take one of two values."""
        return self._map.binary.copy()

    @property
    def threshold(self) -> np.ndarray:
        """bool ``[S]``: slots that are 1 above one half and 0 otherwise."""
        return self._map.threshold.copy()

    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Offset and scale, float64 ``[S]``: ``decode(x) = x * scale + offset``.

        For a binary slot x is -1 or +1 here; the threshold of one is not in it.
        """
        return self._map.offset.copy(), self._map.scale.copy()

    def encode(self, x: np.ndarray, dtype: type[np.floating] = np.float32) -> np.ndarray:
        """Native units to normalised ``[..., S]``, computed in float64.

        Raises:
            InputError: on what is no array of numbers, a width other than the statistics', a value
                that is not finite, before or after, or one that a binary slot does not have.
        """
        x, this = self._check(x), self._map
        with np.errstate(over="ignore"):
            wide = (x - this.origin) / this.divisor - this.shift
        wide[..., this.clipped] = wide[..., this.clipped].clip(-1.0, 1.0)
        wide[..., this.threshold] = wide[..., this.threshold] > 0.5
        if this.binary.any():
            wide[..., this.binary] = self._encode_binary(x)
        return self._narrow(wide, dtype)

    def decode(self, x: np.ndarray, dtype: type[np.floating] = np.float32) -> np.ndarray:
        """Normalised to native units ``[..., S]``; raises as :meth:`encode`."""
        x, this = self._check(x), self._map
        with np.errstate(over="ignore"):
            wide = x * this.scale + this.offset
        wide[..., this.threshold] = wide[..., this.threshold] > 0.5
        if this.binary.any():
            low, high = (values[this.binary] for values in self._extremes())
            wide[..., this.binary] = np.where(x[..., this.binary] > 0, high, low)
        return self._narrow(wide, dtype)

    def _extremes(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.stats.min), np.array(self.stats.max)

    def _encode_binary(self, x: np.ndarray) -> np.ndarray:
        """-1 or +1 of the binary slots alone."""
        binary = self._map.binary
        low, high = (values[binary] for values in self._extremes())
        chosen = x[..., binary].astype(np.float64)
        near = BINARY_TOLERANCE * (high - low)
        is_low = np.abs(chosen - low) <= near
        neither = ~(is_low | (np.abs(chosen - high) <= near))
        if neither.any():
            at = tuple(np.argwhere(neither)[0])
            slot = self.stats.label(int(np.flatnonzero(binary)[at[-1]]))
            raise InputError(
                f"{self.name} slot {slot} is {chosen[at]:g}, expected {low[at[-1]]:g} or"
                f" {high[at[-1]]:g}: a binary slot has two values; use another mode for it"
            )
        return np.where(is_low, -1.0, 1.0)

    def _build(self, modes: np.ndarray) -> _Map:
        stats, present = self.stats, self.stats.present_mask
        low, high = self._extremes()
        q01, q99 = np.array(stats.q01), np.array(stats.q99)
        binary = present & (modes == "binary")
        self._refuse(binary & (low == high), "has one value (min is max), binary needs two")
        zeros, ones, half = np.zeros(stats.width), np.ones(stats.width), (high - low) / 2
        columns = np.stack([zeros, ones, zeros, ones, zeros])
        for mode, parts, wrong in (
            ("zscore", self._zscore(), np.array(stats.std) < 0),
            ("quantile", self._range(q01, q99, "x"), q01 > q99),
            ("min_max", self._range(low, high, "0"), low > high),
            ("binary", (low + half, half, zeros, half, low + half), low > high),
        ):
            chosen = present & (modes == mode)
            self._refuse(chosen & wrong, f"has a negative {mode} scale in the statistics")
            columns[:, chosen] = np.stack(parts)[:, chosen]
        lost = np.logical_not(np.isfinite(columns).all(axis=0))
        self._refuse(lost, "has statistics whose range leaves float64")
        origin, divisor, shift, scale, offset = columns
        threshold = present & (modes == "threshold")
        clipped = present & (modes == "quantile")
        if self.epsilon != "beingh":
            clipped = np.zeros_like(present)
        return _Map(origin, divisor, shift, scale, offset, binary, threshold, clipped)

    def _zscore(self) -> tuple[np.ndarray, ...]:
        """Origin, divisor, shift, scale and offset of every slot."""
        mean, std = np.array(self.stats.mean), np.array(self.stats.std)
        none = np.zeros_like(mean)
        if self.epsilon == "beingh":
            still = std == 0
            return np.where(still, 0.0, mean), np.where(still, 1.0, std), none, std, mean
        divisor = {
            "vlakern": np.maximum(std, SMALLEST_SCALE),
            "openpi": std + OPENPI_EPSILON,
            "lerobot": std + LEROBOT_EPSILON,
        }[self.epsilon]
        return mean, divisor, none, std if self.epsilon == "lerobot" else divisor, mean

    def _range(
        self, low: np.ndarray, high: np.ndarray, still_as: Literal["x", "0"]
    ) -> tuple[np.ndarray, ...]:
        """As :meth:`_zscore`, for ``[low, high]`` to [-1, 1]; the last says Being-H's own rule."""
        span, none, ones = high - low, np.zeros_like(low), np.ones_like(low)
        if self.epsilon == "vlakern":
            scale = np.maximum(span / 2, SMALLEST_SCALE)
            return low + span / 2, scale, none, scale, low + span / 2
        if self.epsilon == "beingh":
            still, half = span == 0, span / 2
            divisor = np.where(still, 1.0 if still_as == "x" else LARGEST, half)
            return np.where(still, 0.0, low), divisor, np.where(still, 0, ones), half, low + half
        if self.epsilon == "openpi":
            scale = (span + OPENPI_EPSILON) / 2
        else:
            scale = np.where(span == 0, LEROBOT_EPSILON, span) / 2
        return low, scale, ones, scale, low + scale

    def _refuse(self, wrong: np.ndarray, reason: str) -> None:
        if wrong.any():
            slot = self.stats.label(int(np.flatnonzero(wrong)[0]))
            raise ConfigError(
                f"{self.name} slot {slot} {reason}; choose another mode or compute the statistics"
                " again"
            )

    def _narrow(self, wide: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
        """A finite number can leave the range of the result."""
        lost = ~(np.abs(wide) <= np.finfo(dtype).max)
        if lost.any():
            slot = self.stats.label(int(np.argwhere(lost)[0][-1]))
            raise InputError(f"{self.name} slot {slot} is too large for the policy's statistics")
        return wide.astype(dtype, copy=False)

    def _check(self, x: np.ndarray) -> np.ndarray:
        x = read_array(x, self.name)
        if x.dtype.kind not in "fiu":
            raise InputError(f"{self.name} is {x.dtype}{list(x.shape)}, expected numbers [..., S]")
        found = x.shape[-1] if x.ndim else 0
        if found != self.stats.width:
            raise InputError(
                f"{self.name} has {found} slots, expected {self.stats.width}: the policy's"
                " statistics were made for another embodiment"
            )
        if not np.isfinite(x).all():
            slot = self.stats.label(int(np.argwhere(~np.isfinite(x))[0][-1]))
            raise InputError(
                f"{self.name} slot {slot} is not finite; check the sensor or the model"
            )
        return x
