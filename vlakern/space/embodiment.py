"""A robot as a declarative record: which native number is which slot, and how it is commanded."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np

from vlakern.errors import ConfigError, InputError
from vlakern.records import from_dict, read_toml
from vlakern.space.arrays import read_array
from vlakern.space.parts import Controller, Field, Joint
from vlakern.space.rotation import WIDTH
from vlakern.space.slots import (
    Slot,
    SlotMap,
    check_name,
    check_width,
    shipped_or_file,
    slot_map,
)

__all__ = [
    "Controller",
    "Embodiment",
    "Field",
    "Joint",
    "check_controlled",
    "check_embodiment",
    "check_relative",
    "check_vector",
    "compact",
    "embodiment",
    "present",
    "robot_and_slots",
    "shipped_embodiments",
]


@dataclass(frozen=True)
class Embodiment:
    """A robot.

    Attributes:
        name: of the robot with its controller.
        slot_map: name of the map that its slots are in.
        control_rate: of its actions [Hz].
        views: camera names, in the order a policy sees them, each once.
        state_width, action_width: of the native vectors.
        state: what the numbers of an observation's state are. Numbers that no field names are not
            used.
        action: what the numbers of a command are: absolute pose targets (positions in [m]),
            grippers, joints. Every number has a field.
        controller: how a pose target becomes numbers of the robot's own controller; None where the
            robot takes the command as it is.
        joints: of the arm, with their limits; empty where nobody declared them.
        description: for people.
        poses: what the poses of state and command are relative to: the robot's ``base`` or the
            ``world``.
    """

    name: str
    slot_map: str
    control_rate: float
    views: tuple[str, ...]
    state_width: int
    action_width: int
    state: tuple[Field, ...]
    action: tuple[Field, ...]
    controller: Controller | None = None
    joints: tuple[Joint, ...] = ()
    description: str = ""
    poses: Literal["base", "world"] = "base"

    def __post_init__(self) -> None:
        check_name(self.name, "the name of a robot")
        if not self.control_rate > 0:
            raise ConfigError(f"control_rate is {self.control_rate}, expected more than 0 Hz")
        if not self.views or len(set(self.views)) < len(self.views):
            raise ConfigError(
                f"views is {list(self.views)}, expected names that differ; name every camera once"
            )
        for view in self.views:
            check_name(view, "a view")
        check_width(self.state_width, "state_width", least=0)
        check_width(self.action_width, "action_width")
        names = [joint.name for joint in self.joints]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ConfigError(f"two joints are called {twice!r}; give each its own name")
        if self.poses not in ("base", "world"):
            raise ConfigError(f"poses is {self.poses!r}, expected base or world")


def shipped_embodiments() -> list[str]:
    """Names of the robots inside the package."""
    folder = resources.files("vlakern.space") / "robots"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir())


def embodiment(name_or_path: str | Path) -> Embodiment:
    """A robot that ships, or one from a TOML file; see :func:`robot_and_slots`."""
    return robot_and_slots(name_or_path)[0]


def robot_and_slots(name_or_path: str | Path) -> tuple[Embodiment, SlotMap]:
    """A robot and its slot map, checked against each other.

    A file's ``slot_map`` is the name of a map that ships or a TOML file, relative to the robot's;
    in the record that comes back it is the map's name.

    Raises:
        ConfigError: there is no such robot or map, or the record contradicts itself or its map.
    """
    path = shipped_or_file(name_or_path, "robots", "embodiment")
    found = from_dict(Embodiment, read_toml(path), path.name)
    own = found.slot_map.endswith(".toml")
    slots = slot_map(path.parent / found.slot_map if own else found.slot_map)
    found = replace(found, slot_map=slots.name)
    check_embodiment(found, slots, slots, path.name)
    return found, slots


def check_embodiment(robot: Embodiment, state: SlotMap, action: SlotMap, where: str) -> None:
    """Refuses a robot whose fields do not fit its slot maps or its native vectors.

    Raises:
        ConfigError: naming the slot.
    """
    for part, fields, width, slots in (
        ("state", robot.state, robot.state_width, state),
        ("action", robot.action, robot.action_width, action),
    ):
        if slots.name != robot.slot_map:
            raise ConfigError(
                f"{where}: slot_map is {robot.slot_map!r}, the {part} map is {slots.name!r}; give"
                " the map that the robot names"
            )
        at = f"{where}: {part}"
        _check_native(fields, width, at)
        for field in fields:
            _check_field(field, slots.slot(field.slot, at), at)
    named = sum(field.width for field in robot.action)
    if named < robot.action_width:
        raise ConfigError(
            f"{where}: action: the fields name {named} of {robot.action_width} numbers, expected"
            " all of them; give every number a field"
        )
    check_controlled(robot, action, where)


def check_controlled(robot: Embodiment, slots: SlotMap, where: str) -> None:
    """Refuses an end-effector's rotation in other numbers than the controller takes.

    Raises:
        ConfigError: naming the slot.
    """
    if robot.controller is None:
        return
    placed = {f.slot.removesuffix("_position") for f in robot.action if _is_position(f, slots)}
    for field in robot.action:
        kind, wanted = field.rotation, robot.controller.rotation
        turns = kind is not None and field.slot.removesuffix("_rotation") in placed
        if turns and kind != wanted:
            raise ConfigError(
                f"{where}: slot {field.slot!r} is commanded as {kind}, controller"
                f" {robot.controller.name} takes {wanted}; declare one of them"
            )


def _is_position(field: Field, slots: SlotMap) -> bool:
    return slots.slot(field.slot).kind == "position"


def _check_native(fields: Sequence[Field], width: int, at: str) -> None:
    names = [field.slot for field in fields]
    for field in fields:
        if names.count(field.slot) > 1:
            raise ConfigError(f"{at}: slot {field.slot!r} is filled twice; keep one of its fields")
        if field.native[1] > width:
            raise ConfigError(
                f"{at}: slot {field.slot!r} takes numbers {list(field.native)} of a vector that has"
                f" {width}; correct native or the width"
            )
    for left, right in itertools.pairwise(sorted(fields, key=lambda field: field.native)):
        if right.native[0] < left.native[1]:
            raise ConfigError(
                f"{at}: slots {left.slot!r} and {right.slot!r} both take number"
                f" {right.native[0]}; give every number to one slot"
            )


def _check_field(field: Field, slot: Slot, at: str) -> None:
    if slot.kind == "reserved":
        raise ConfigError(
            f"{at}: slot {slot.name!r} is reserved and cannot be filled; choose another"
        )
    is_rotation = slot.kind in WIDTH
    if is_rotation != (field.rotation is not None):
        wanted = f"rotation = one of {', '.join(WIDTH)}" if is_rotation else "no rotation"
        raise ConfigError(f"{at}: slot {slot.name!r} is of kind {slot.kind}; expected {wanted}")
    needs = WIDTH[field.rotation] if field.rotation else slot.width
    # Wide slots such as joints may be filled in part, from their first index on.
    partly = slot.kind in ("joint", "hand", "other") and field.width < needs
    if field.width != needs and not partly:
        raise ConfigError(
            f"{at}: slot {slot.name!r} takes {field.width} native numbers, expected {needs}"
        )
    if field.closed is not None and slot.kind != "gripper":
        raise ConfigError(
            f"{at}: slot {slot.name!r} has closed and open but is of kind {slot.kind}, not gripper;"
            " remove them"
        )
    if field.degrees and (slot.unit != "rad" or field.rotation is not None):
        raise ConfigError(
            f"{at}: slot {slot.name!r} has degrees, but only joint angles are turned into"
            f" radians, not unit {slot.unit!r} of kind {slot.kind}"
        )


def check_vector(
    values: np.ndarray, fields: Sequence[Field], width: int, robot: str, what: str
) -> np.ndarray:
    """Native numbers ``[..., width]`` as float64, refused if they cannot be a robot's.

    Raises:
        InputError: another width, no floating-point numbers, or one that is not finite, naming the
            slot.
    """
    values = read_array(values, what)
    if values.ndim == 0 or values.shape[-1] != width or values.dtype.kind != "f":
        names = ", ".join(field.slot for field in fields)
        raise InputError(
            f"{what} is {values.dtype}{list(values.shape)}, {robot} has [..., {width}]"
            f" floating-point numbers ({names})"
        )
    with np.errstate(over="ignore"):
        values = values.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        column = int(np.argwhere(~finite)[0][-1])
        inside = [f.slot for f in fields if f.native[0] <= column < f.native[1]]
        slot = f"slot {inside[0]!r}" if inside else "in no slot"
        raise InputError(
            f"{what} number {column} ({slot}) is not finite; check the sensor or the model"
        )
    return values


def check_relative(relative: Sequence[int], robot: Embodiment) -> list[int]:
    """Indices that state and command share, in order.

    Raises:
        ConfigError: an index that one of them does not have, or one that is there twice.
    """
    both = min(robot.state_width, robot.action_width)
    wrong = any(not 0 <= index < both for index in relative)
    if wrong or len(set(relative)) < len(relative):
        raise ConfigError(
            f"{robot.name}: relative is {list(relative)}, expected indices below {both} that state"
            " and action share, each once"
        )
    return sorted(relative)


def present(fields: Sequence[Field], slots: SlotMap) -> np.ndarray:
    """bool ``[W]``: the indices of the map that the fields fill."""
    mask = np.zeros(slots.width, bool)
    for field in fields:
        slot = slots.slot(field.slot)
        filled = slot.width if field.rotation else field.width
        mask[slot.start : slot.start + filled] = True
    return mask


def compact(robot: Embodiment, slots: SlotMap) -> SlotMap:
    """The map with only the slots that the robot fills, moved together: for single-robot models."""
    used: dict[str, tuple[Slot, int]] = {}
    for field in (*robot.state, *robot.action):
        slot = slots.slot(field.slot)
        width = slot.width if field.rotation else field.width
        used[slot.name] = slot, max(width, used.get(slot.name, (slot, 0))[1])
    kept, at = [], 0
    for slot, width in sorted(used.values(), key=lambda one: one[0].start):
        kept.append(replace(slot, start=at, stop=at + width))
        at += width
    return SlotMap(f"{slots.name}/{robot.name}", at, tuple(kept))
