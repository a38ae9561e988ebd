"""Named dimensions of a state or action vector, as data."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from vlakern.errors import ConfigError

__all__ = ["UNITS", "Slot", "check_slots"]

UNITS = ("m", "rad", "m/s", "rad/s", "1")


@dataclass(frozen=True)
class Slot:
    """The indices ``[start, stop)`` of a vector, what they mean and their unit ("1" for none)."""

    name: str
    unit: str
    start: int
    stop: int


def check_slots(slots: Sequence[Slot], width: int, where: str) -> None:
    """Refuses slots that overlap, leave the vector, share a name or have an unknown unit.

    Raises:
        ConfigError: naming the slot and, for an overlap, both.
    """
    names = [slot.name for slot in slots]
    for slot in slots:
        if slot.unit not in UNITS:
            raise ConfigError(
                f"{where}: slot {slot.name!r} has unit {slot.unit!r}; known are {', '.join(UNITS)}"
            )
        if not 0 <= slot.start < slot.stop <= width:
            raise ConfigError(
                f"{where}: slot {slot.name!r} covers [{slot.start}, {slot.stop}), expected a range"
                f" inside [0, {width})"
            )
        if names.count(slot.name) > 1:
            raise ConfigError(f"{where}: two slots are called {slot.name!r}")
    ordered = sorted(slots, key=lambda slot: slot.start)
    for left, right in itertools.pairwise(ordered):
        if right.start < left.stop:
            raise ConfigError(f"{where}: slots {left.name!r} and {right.name!r} overlap")
