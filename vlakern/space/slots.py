"""Named dimensions of a state or action vector, as data: slot maps are TOML files."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from vlakern.errors import ConfigError
from vlakern.records import from_dict, read_toml
from vlakern.space.rotation import WIDTH

__all__ = [
    "KINDS",
    "MOST_WIDTH",
    "UNITS",
    "Group",
    "Kind",
    "Side",
    "Slot",
    "SlotMap",
    "check_name",
    "check_slots",
    "check_width",
    "shipped_or_file",
    "slot_map",
]

UNITS = ("m", "rad", "m/s", "rad/s", "1")
Side = Literal["", "left", "right"]
Kind = Literal[
    "position",
    "axis_angle",
    "rotation_6d",
    "quaternion_xyzw",
    "quaternion_wxyz",
    "joint",
    "gripper",
    "hand",
    "head",
    "waist",
    "base",
    "mode",
    "other",
    "reserved",
]
KINDS: tuple[str, ...] = get_args(Kind)
# A damaged file must fail here, not by filling the memory.
MOST_WIDTH = 1 << 16
_WIDTHS = {"position": 3, **WIDTH}
# Kinds that are not here may have any unit.
_UNITS_OF = {
    "position": ("m",),
    "axis_angle": ("rad",),
    "rotation_6d": ("1",),
    "quaternion_xyzw": ("1",),
    "quaternion_wxyz": ("1",),
    "joint": ("rad", "m"),
    "gripper": ("1",),
    "hand": ("rad", "m", "1"),
    "head": ("rad", "m"),
    "waist": ("rad", "m"),
    "mode": ("1",),
}


@dataclass(frozen=True)
class Slot:
    """The indices ``[start, stop)`` of a vector and what they mean.

    Attributes:
        unit: of every index, one of ``UNITS`` that suits the kind; "1" for none.
        side: of the body, "" where it has no sides; those of one pose are alike.
        kind: decides how the slot is treated. ``position`` is an end-effector's x, y, z and is
            called ``X_position``; its rotation, of one of the four rotation kinds, which fix
            representation and quaternion order, is ``X_rotation``. ``reserved`` is never filled.
    """

    name: str
    unit: str
    start: int
    stop: int
    side: Side = ""
    kind: Kind = "other"

    @property
    def width(self) -> int:
        """Number of indices."""
        return self.stop - self.start


@dataclass(frozen=True)
class Group:
    """A range of a map that its slots must cover without a gap; groups do not share an index."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class SlotMap:
    """A unified vector: its width and its slots.

    Raises:
        ConfigError: overlapping, misplaced or unknown parts, naming both sides; see
            :func:`check_slots`. A group with a hole names the slots beside the hole.
    """

    name: str
    width: int
    slots: tuple[Slot, ...]
    groups: tuple[Group, ...] = ()
    description: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "the name of a slot map")
        where = f"slot map {self.name!r}"
        check_width(self.width, f"{where}: width")
        check_slots(self.slots, self.width, where)
        _check_groups(self.groups, self.slots, self.width, where)
        if not self.slots:
            raise ConfigError(f"{where}: it has no slots; declare at least one")
        indices = self.names()
        if len(set(indices)) < len(indices):
            twice = next(name for name in indices if indices.count(name) > 1)
            raise ConfigError(f"{where}: two indices are called {twice!r}; rename one of the slots")

    def slot(self, name: str, where: str = "") -> Slot:
        """The slot called ``name``.

        Raises:
            ConfigError: there is none; names those that sound alike.
        """
        for slot in self.slots:
            if slot.name == name:
                return slot
        side = name.split("_")[0]
        near = [slot.name for slot in self.slots if slot.name.split("_")[0] == side]
        known = near or [slot.name for slot in self.slots]
        raise ConfigError(
            f"{f'{where}: ' if where else ''}slot {name!r} is not in slot map {self.name!r}; it has"
            f" {', '.join(known) or 'none'}"
        )

    def names(self) -> tuple[str, ...]:
        """A name per index: ``slot.0``, ``slot.1``; just the slot's where it has one index."""
        names = [f"unnamed.{i}" for i in range(self.width)]
        for slot in self.slots:
            for i in range(slot.start, slot.stop):
                names[i] = slot.name if slot.width == 1 else f"{slot.name}.{i - slot.start}"
        return tuple(names)


def slot_map(name_or_path: str | Path) -> SlotMap:
    """A slot map that ships (``unified-200``, ``pad-32``) or one from a TOML file.

    Raises:
        ConfigError: no such map, or a file that is not one.
    """
    path = shipped_or_file(name_or_path, "maps", "slot map")
    return from_dict(SlotMap, read_toml(path), path.name)


def shipped_or_file(name_or_path: str | Path, folder: str, what: str) -> Path:
    """The TOML file of this path, or the one of this name inside the package.

    Raises:
        ConfigError: neither; names those that ship.
    """
    if str(name_or_path).endswith(".toml"):
        return Path(name_or_path)
    inside = resources.files("vlakern.space") / folder
    known = sorted(entry.name.removesuffix(".toml") for entry in inside.iterdir())
    if str(name_or_path) not in known:
        raise ConfigError(
            f"no {what} {str(name_or_path)[:80]!r}; use {', '.join(known)} or a path to a TOML file"
        )
    return Path(str(inside / f"{name_or_path}.toml"))


def check_name(name: str, what: str) -> None:
    """Raises ConfigError for a name that is empty or could not be shown in one line."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ConfigError(f"{what} is {name!r}, expected a name of printable characters")


def check_width(width: int, what: str, least: int = 1) -> None:
    """Raises ConfigError for a vector that is wider than any robot's."""
    if not isinstance(width, int) or isinstance(width, bool) or not least <= width <= MOST_WIDTH:
        raise ConfigError(
            f"{what} is {str(width)[:40]}, expected a whole number from {least} to {MOST_WIDTH}"
        )


def check_slots(slots: Sequence[Slot], width: int, where: str) -> None:
    """Refuses slots that overlap, leave the vector, share a name or contradict their kind.

    Raises:
        ConfigError: naming the slot and, for an overlap, a shared name or two sides, both.
    """
    named: dict[str, Slot] = {}
    for slot in slots:
        _check_slot(slot, width, where)
        twin = named.setdefault(slot.name, slot)
        if twin is not slot:
            raise ConfigError(
                f"{where}: two slots are called {slot.name!r}, {_range(twin)} and {_range(slot)};"
                " give each its own name"
            )
    ordered = sorted(slots, key=lambda slot: slot.start)
    for left, right in itertools.pairwise(ordered):
        if right.start < left.stop:
            raise ConfigError(
                f"{where}: slots {left.name!r} {_range(left)} and {right.name!r} {_range(right)}"
                " overlap; give every index to one slot"
            )
    for slot in slots:
        twin = named.get(slot.name.removesuffix("_rotation") + "_position")
        if slot.kind in WIDTH and twin and twin.side != slot.side:
            raise ConfigError(
                f"{where}: slots {twin.name!r} of side {twin.side!r} and {slot.name!r} of side"
                f" {slot.side!r} are one end-effector; give both the same side"
            )


def _check_slot(slot: Slot, width: int, where: str) -> None:
    check_name(slot.name, f"{where}: the name of a slot")
    if slot.side not in get_args(Side):
        raise ConfigError(
            f"{where}: slot {slot.name!r} has side {slot.side!r}; known are left, right and ''"
        )
    if slot.unit not in UNITS:
        raise ConfigError(
            f"{where}: slot {slot.name!r} has unit {slot.unit!r}; known are {', '.join(UNITS)}"
        )
    if slot.kind not in KINDS:
        raise ConfigError(
            f"{where}: slot {slot.name!r} has kind {slot.kind!r}; known are {', '.join(KINDS)}"
        )
    if slot.kind == "position" and not slot.name.endswith("_position"):
        raise ConfigError(
            f"{where}: slot {slot.name!r} of kind position needs a name that ends in _position, by"
            " which its rotation is found"
        )
    if not 0 <= slot.start < slot.stop <= width:
        raise ConfigError(
            f"{where}: slot {slot.name!r} covers {_range(slot)}, expected a range inside"
            f" [0, {width})"
        )
    needs = _WIDTHS.get(slot.kind, slot.width)
    if slot.width != needs:
        raise ConfigError(
            f"{where}: slot {slot.name!r} of kind {slot.kind} covers {slot.width} indices, expected"
            f" {needs}"
        )
    if slot.kind in WIDTH and not slot.name.endswith("_rotation"):
        raise ConfigError(
            f"{where}: slot {slot.name!r} of kind {slot.kind} needs a name that ends in _rotation,"
            " by which its position finds it"
        )
    units = _UNITS_OF.get(slot.kind, UNITS)
    if slot.unit not in units:
        raise ConfigError(
            f"{where}: slot {slot.name!r} of kind {slot.kind} has unit {slot.unit!r}, expected"
            f" {' or '.join(units)}; use kind other for numbers in other units"
        )


def _check_groups(groups: Sequence[Group], slots: Sequence[Slot], width: int, where: str) -> None:
    names: set[str] = set()
    for group in groups:
        check_name(group.name, f"{where}: the name of a group")
        if group.name in names:
            raise ConfigError(
                f"{where}: two groups are called {group.name!r}; give each its own name"
            )
        names.add(group.name)
        _check_group(group, slots, width, where)
    for left, right in itertools.pairwise(sorted(groups, key=lambda group: group.start)):
        if right.start < left.stop:
            raise ConfigError(
                f"{where}: groups {left.name!r} [{left.start}, {left.stop}) and {right.name!r}"
                f" [{right.start}, {right.stop}) overlap; give every index to one group"
            )


def _check_group(group: Group, slots: Sequence[Slot], width: int, where: str) -> None:
    if not 0 <= group.start < group.stop <= width:
        raise ConfigError(
            f"{where}: group {group.name!r} covers [{group.start}, {group.stop}), expected a range"
            f" inside [0, {width})"
        )
    at, before = group.start, f"the start of group {group.name!r}"
    for slot in sorted(slots, key=lambda slot: slot.start):
        if slot.stop <= group.start or slot.start >= group.stop:
            continue
        if slot.start < group.start or slot.stop > group.stop:
            raise ConfigError(
                f"{where}: slot {slot.name!r} {_range(slot)} crosses the border of group"
                f" {group.name!r} [{group.start}, {group.stop}); move the border or the slot"
            )
        if slot.start > at:
            _gap(at, slot.start, before, f"slot {slot.name!r}", where, group)
        at, before = slot.stop, f"slot {slot.name!r}"
    if at < group.stop:
        _gap(at, group.stop, before, f"the end of group {group.name!r}", where, group)


def _gap(start: int, stop: int, before: str, after: str, where: str, group: Group) -> None:
    raise ConfigError(
        f"{where}: group {group.name!r} has a gap [{start}, {stop}) between {before} and {after};"
        " declare it reserved or close it"
    )


def _range(slot: Slot) -> str:
    return f"[{slot.start}, {slot.stop})"
