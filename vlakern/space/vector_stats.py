"""Statistics of state and action vectors over a dataset, one number per slot."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlakern.errors import ConfigError

__all__ = ["FIELDS", "VectorStats", "check_names"]

FIELDS = ("mean", "std", "min", "max", "q01", "q99")


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
