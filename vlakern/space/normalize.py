"""Normalisation of state and action vectors from dataset statistics."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from vlakern.errors import ConfigError, InputError
from vlakern.space.arrays import read_array

__all__ = ["Epsilon", "Mode", "Normalizer", "VectorStats", "check_names"]

Mode = Literal["zscore", "quantile", "min_max", "binary", "none"]
Epsilon = Literal["vlakern", "openpi", "lerobot"]
FIELDS = ("mean", "std", "min", "max", "q01", "q99")
# A slot that never moves has no scale; dividing by this instead keeps its encoding finite.
SMALLEST_SCALE = 1e-3
OPENPI_EPSILON = 1e-6
LEROBOT_EPSILON = 1e-8
# Of the distance between the two values; fp16 storage of a value costs up to 5e-4 of it.
BINARY_TOLERANCE = 1e-3


@dataclass(frozen=True)
class VectorStats:
    """Statistics of one feature over a dataset, one number per slot.

    A slot that no row had is absent: its numbers are placeholders (mean 0, std 1, min and q01 -1,
    max and q99 1) and a :class:`Normalizer` leaves it as it is.

    Attributes:
        names: one per slot (``"hand_x"``); empty for statistics from before slots had names.
        present: whether the slot was in the data; empty for all.

    Raises:
        ConfigError: what is no list of numbers, lists of different lengths, names or presence of
            another length, or a name twice.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    names: tuple[str, ...] = field(default=(), kw_only=True)
    present: tuple[bool, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        for key in FIELDS:
            object.__setattr__(self, key, _numbers(getattr(self, key), f"statistics.{key}"))
        widths = {key: len(getattr(self, key)) for key in FIELDS}
        if len(set(widths.values())) != 1:
            raise ConfigError(f"statistics: lists of one length expected, found {widths}")
        _check_labels(self.names, self.present, self.width, "statistics")

    @classmethod
    def units(cls, names: Sequence[str]) -> "VectorStats":
        """Of slots that nobody has measured: mean 0, std 1, everything from -1 to 1."""
        zeros, ones = (0.0,) * len(names), (1.0,) * len(names)
        low = (-1.0,) * len(names)
        return cls(zeros, ones, low, ones, low, ones, names=tuple(names))

    @property
    def width(self) -> int:
        """Number of slots."""
        return len(self.mean)

    @property
    def present_mask(self) -> np.ndarray:
        """bool ``[S]``: the slots that the data had."""
        return np.array(self.present or (True,) * self.width, dtype=bool)

    def label(self, index: int) -> str:
        """What messages call a slot: ``3`` or ``3 (hand_x)``."""
        return f"{index} ({self.names[index]})" if self.names else str(index)

    def check_names(self, expected: Sequence[str], where: str) -> None:
        """Refuses statistics that were made for another slot map.

        Statistics without names pass if their width fits: they say no more about themselves.

        Raises:
            ConfigError: naming the first slot that differs.
        """
        if self.names:
            check_names(self.names, expected, where)
        elif self.width != len(expected):
            raise ConfigError(
                f"{where}: the statistics have {self.width} slots, expected {len(expected)}"
                f" ({', '.join(expected)}); compute them for this slot map"
            )

    @classmethod
    def from_json(cls, values: Any, where: str) -> "VectorStats":
        """Reads ``{"mean": [...], ...}``; every list must be as long as the mean and finite.

        ``names`` and ``present`` may be missing.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}: expected an object with {', '.join(FIELDS)}")
        lists = {}
        for key in FIELDS:
            numbers = values.get(key)
            if not isinstance(numbers, Sequence) or not all(_finite(n) for n in numbers):
                raise ConfigError(f"{where}.{key}: expected a list of finite numbers")
            lists[key] = tuple(float(n) for n in numbers)
        widths = {key: len(numbers) for key, numbers in lists.items()}
        if len(set(widths.values())) != 1:
            raise ConfigError(f"{where}: lists of one length expected, found {widths}")
        names = _list_of(str, values, "names", where)
        present = _list_of(bool, values, "present", where)
        _check_labels(names, present, widths["mean"], where)
        return cls(**lists, names=names, present=present)

    def to_json(self) -> dict[str, list[Any]]:
        """The inverse of :meth:`from_json`."""
        optional = {"names": list(self.names), "present": list(self.present)}
        numbers = {key: list(getattr(self, key)) for key in FIELDS}
        return {**numbers, **{key: value for key, value in optional.items() if value}}


def check_names(found: Sequence[str], expected: Sequence[str], where: str) -> None:
    """Refuses statistics whose slots are not the expected ones, in order.

    Raises:
        ConfigError: naming the first slot that differs.
    """
    if tuple(found) == tuple(expected):
        return
    pairs = enumerate(zip(found, expected, strict=False))
    shorter = min(len(found), len(expected))
    index = next((i for i, (left, right) in pairs if left != right), shorter)
    left = repr(found[index]) if index < len(found) else "missing"
    right = repr(expected[index]) if index < len(expected) else "no such slot"
    raise ConfigError(
        f"{where}: slot {index} of the statistics is {left}, expected {right}: they were made for"
        " another slot map; compute them for this one"
    )


@dataclass(frozen=True, eq=False)
class _Map:
    """encode(x) = (x - origin) / divisor - shift; decode(x) = x * scale + offset; float64 [S]."""

    origin: np.ndarray
    divisor: np.ndarray
    shift: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    binary: np.ndarray


@dataclass(frozen=True)
class Normalizer:
    """An affine map per slot, and its inverse.

    In float64, ``decode(encode(x))`` differs from ``x`` by at most four roundings of the numbers
    involved: ``4 * 2**-52 * (|x| + |offset| + scale)``. Without normalisation it is ``x``; for a
    binary slot it is exactly one of its two values. One exception is kept for parity: LeRobot's
    z-score divides by ``std + 1e-8`` and multiplies by ``std``.

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
    ======== ============================ ====================== ===================================

    A binary slot has two values, the statistics' min and max, which become -1 and +1; decode takes
    max for a positive number and min otherwise.

    Attributes:
        name: of the vector, for messages.
        modes: one for all slots, or one per slot: ``zscore`` (mean, std), ``quantile`` (q01 and
            q99 to -1 and 1), ``min_max`` (min and max to -1 and 1), ``binary`` or ``none``.
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

    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Offset and scale, float64 ``[S]``: ``decode(x) = x * scale + offset``.

        For a binary slot x is -1 or +1 here.
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
        if this.binary.any():
            wide[..., this.binary] = self._encode_binary(x)
        return self._narrow(wide, dtype)

    def decode(self, x: np.ndarray, dtype: type[np.floating] = np.float32) -> np.ndarray:
        """Normalised to native units ``[..., S]``; raises as :meth:`encode`."""
        x, this = self._check(x), self._map
        with np.errstate(over="ignore"):
            wide = x * this.scale + this.offset
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
        columns = np.stack([zeros, ones, zeros, ones])
        for mode, parts, wrong in (
            ("zscore", self._zscore(), np.array(stats.std) < 0),
            ("quantile", self._range(q01, q99), q01 > q99),
            ("min_max", self._range(low, high), low > high),
            ("binary", (low + half, half, zeros, half), low > high),
        ):
            chosen = present & (modes == mode)
            self._refuse(chosen & wrong, f"has a negative {mode} scale in the statistics")
            columns[:, chosen] = np.stack(parts)[:, chosen]
        origin, divisor, shift, scale = columns
        offset = origin + shift * scale
        lost = ~np.isfinite(columns).all(axis=0) | ~np.isfinite(offset)
        self._refuse(lost, "has statistics whose range leaves float64")
        return _Map(origin, divisor, shift, scale, offset, binary)

    def _zscore(self) -> tuple[np.ndarray, ...]:
        """Origin, divisor, shift and scale of every slot."""
        mean, std = np.array(self.stats.mean), np.array(self.stats.std)
        divisor = {
            "vlakern": np.maximum(std, SMALLEST_SCALE),
            "openpi": std + OPENPI_EPSILON,
            "lerobot": std + LEROBOT_EPSILON,
        }[self.epsilon]
        return mean, divisor, np.zeros_like(mean), std if self.epsilon == "lerobot" else divisor

    def _range(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, ...]:
        """As :meth:`_zscore`, for ``[low, high]`` to [-1, 1]."""
        span = high - low
        if self.epsilon == "vlakern":
            scale = np.maximum(span / 2, SMALLEST_SCALE)
            return low + span / 2, scale, np.zeros_like(low), scale
        if self.epsilon == "openpi":
            scale = (span + OPENPI_EPSILON) / 2
        else:
            scale = np.where(span == 0, LEROBOT_EPSILON, span) / 2
        return low, scale, np.ones_like(low), scale

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


def _numbers(values: Any, what: str) -> tuple[float, ...]:
    """``values`` as a tuple of floats."""
    try:
        if not isinstance(values, str):
            return tuple(float(value) for value in values)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise ConfigError(f"{what} is {str(values)[:40]!r}, expected a list with one number per slot")


def _check_labels(names: Sequence[str], present: Sequence[bool], width: int, where: str) -> None:
    for what, values in (("names", names), ("present", present)):
        if values and len(values) != width:
            raise ConfigError(f"{where}.{what}: expected {width} of them, found {len(values)}")
    twice = sorted({name for name in names if names.count(name) > 1}) if names else []
    if twice:
        raise ConfigError(f"{where}.names: two slots are called {twice[0]!r}")


def _list_of(kind: type, values: Mapping[str, Any], key: str, where: str) -> tuple[Any, ...]:
    found = values.get(key, [])
    if not isinstance(found, list) or not all(isinstance(one, kind) for one in found):
        raise ConfigError(f"{where}.{key}: expected a list of {kind.__name__}")
    return tuple(found)


def _finite(number: Any) -> bool:
    """Whether a JSON value is a number that fits a float."""
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return False
    return abs(number) <= sys.float_info.max
