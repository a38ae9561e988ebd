"""The robot behind a dataset: its slot maps, its commands and their statistics."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from vlakern import ops
from vlakern.data.collate import chunks_at
from vlakern.data.dataset import Dataset
from vlakern.data.stats import SlotStats
from vlakern.data.stride import Stride
from vlakern.errors import ConfigError, DatasetError, InputError
from vlakern.models.weights.native import Processing, make_space
from vlakern.space import (
    ActionSpace,
    Embodiment,
    Slot,
    SlotMap,
    VectorStats,
    compact,
    robot_and_slots,
    shipped_embodiments,
)
from vlakern.space.action_space import ActionFrame
from vlakern.space.controller import NativeControl
from vlakern.space.embodiment import Field, check_embodiment
from vlakern.space.rotation import WIDTH

__all__ = ["Body", "in_map", "resized", "resolve_body"]

# Starts whose chunks are unified in one go: 16 steps of 200 slots of them take 13 MB.
STARTS = 512


@dataclass(frozen=True)
class Body:
    """A robot with the maps of a model, and the parametrisation of its actions.

    ``stride`` is in frames of the dataset from one step of a chunk to the next; the robot's rate is
    that of the steps.
    """

    robot: Embodiment
    state_map: SlotMap
    action_map: SlotMap
    frame: ActionFrame
    stride: int = 1

    @property
    def control(self) -> NativeControl | None:
        """Between recorded numbers and commands; None if both are the same.

        They are if the frame is native or the robot takes commands themselves.
        """
        if self.frame == "native" or self.robot.controller is None:
            return None
        return NativeControl(self.robot, self.action_map)

    def plain_space(self) -> ActionSpace:
        """Between native numbers and slots, with nothing normalised.

        Raises:
            ConfigError: the robot cannot have this frame; names the slot that it lacks.
        """
        maps = self.state_map, self.action_map
        units = (VectorStats.units(slots.names()) for slots in maps)
        return make_space(self.robot, *maps, Processing("none", "none", frame=self.frame), *units)

    def statistics(
        self, states: Sequence[np.ndarray], actions: Sequence[np.ndarray], chunk: int
    ) -> tuple[VectorStats, VectorStats]:
        """Of states and recorded actions of each episode ``[T, ...]``, after the frame transform.

        Native actions count once each; in the other frames every step of the chunk from every
        instant counts, because its numbers differ from chunk to chunk.
        """
        state_stats = SlotStats(self.state_map.names())
        action_stats = SlotStats(self.action_map.names())
        space = self.plain_space()
        for state_TS, action_TN in zip(states, actions, strict=True):
            state_stats.add(space.unify_state(state_TS), space.state_mask)
            for rows in self.action_rows(space, state_TS, action_TN, chunk):
                action_stats.add(rows, space.action_mask)
        return state_stats.result(), action_stats.result()

    def action_rows(
        self, space: ActionSpace, state_TS: np.ndarray, action_TN: np.ndarray, chunk: int
    ) -> Iterator[np.ndarray]:
        """What the model sees of one episode's actions, in parts: ``[N, W]`` in units of slots.

        Args:
            space: of :meth:`plain_space`.
        """
        length, control = 1 if self.frame == "native" else chunk, self.control
        for first in range(0, len(action_TN), STARTS):
            starts = range(first, min(first + STARTS, len(action_TN)))
            chunks, valid_TH = chunks_at(state_TS, action_TN, starts, length, control, self.stride)
            yield space.unify(chunks, state_TS[starts.start : starts.stop])[valid_TH]


def resolve_body(
    dataset: Dataset,
    width: int,
    frame: ActionFrame,
    robot: tuple[Embodiment, SlotMap] | None = None,
    stride: int = 1,
) -> Body:
    """The robot of a dataset, with its whole slot map if that has ``width``, else a compact one.

    Views and rate are the dataset's.

    Raises:
        DatasetError: vectors of other widths than the robot's.
        ConfigError: two names of the dataset are the same, or a unit is unknown.
        InputError: a stride below 1, or above 1 where it would leave out motion.
    """
    steps = Stride(float(dataset.fps), stride)
    if robot is None and dataset.robot_type in shipped_embodiments():
        robot = robot_and_slots(dataset.robot_type)
    controller = robot[0].controller if robot else None
    if stride > 1 and frame == "native" and (robot is None or controller):
        who = robot[0].name if robot else f"{dataset.robot_type!r}, which has no record here,"
        raise InputError(
            f"stride is {stride}, but native actions of {who} may be steps from pose to pose, and"
            " leaving some out would lose their motion; choose another --frame or stride 1"
        )
    if robot is None:
        return _by_names(dataset, frame)
    body, slots = robot
    for what, found, wanted in (
        ("observation.state", len(dataset.state_names), body.state_width),
        ("action", len(dataset.action_names), body.action_width),
    ):
        if found != wanted:
            raise DatasetError(
                f"{what} of {dataset.root} has {found} numbers, robot {body.name} has {wanted};"
                " name the robot that recorded it with --embodiment"
            )
    if slots.width != width:
        slots = compact(body, slots)
    rate, views = steps.effective_rate, tuple(dataset.views)
    body = replace(body, slot_map=slots.name, control_rate=rate, views=views)
    return Body(body, slots, slots, frame, stride)


def in_map(body: Body, slots: SlotMap, where: str) -> Body:
    """The same robot with its numbers in another slot map.

    Raises:
        ConfigError: the map lacks a slot of the robot, or has it in another unit or of another
            kind; the kinds of rotations are one.
    """
    for fields, own in ((body.robot.state, body.state_map), (body.robot.action, body.action_map)):
        for field in fields:
            mine, theirs = own.slot(field.slot), slots.slot(field.slot, where)
            # A rotation is written anew in whatever kind a map has it.
            turns = mine.kind in WIDTH and theirs.kind in WIDTH
            if (mine.unit, mine.kind) != (theirs.unit, theirs.kind) and not turns:
                raise ConfigError(
                    f"{where}: slot {mine.name!r} is {mine.kind} in unit {mine.unit!r}, slot map"
                    f" {slots.name!r} has it as {theirs.kind} in {theirs.unit!r}; use one map"
                )
    robot = replace(body.robot, slot_map=slots.name)
    check_embodiment(robot, slots, slots, where)
    return replace(body, robot=robot, state_map=slots, action_map=slots)


def resized(images_TSS3: np.ndarray, side: int) -> np.ndarray:
    """uint8 ``[T, H, W, 3]`` to ``[T, side, side, 3]``, letterboxed as a policy does it."""
    if images_TSS3.shape[1:3] == (side, side):
        return images_TSS3
    planes_T3SS = ops.image_prep(images_TSS3, size=side)
    # The op gives levels in [-1, 1], which are whole numbers of 255 again.
    return ((planes_T3SS + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _by_names(dataset: Dataset, frame: ActionFrame) -> Body:
    """A robot of which nothing but the names is known: a slot each."""
    if frame != "native":
        raise DatasetError(
            f"{dataset.root} was recorded by {dataset.robot_type!r}, which has no record here, so"
            f" its poses are unknown and frame {frame} cannot be made; name a robot with"
            " --embodiment"
        )
    name = dataset.robot_type or "robot"
    state, action = _slots(dataset.state_names), _slots(dataset.action_names)
    robot = Embodiment(
        name,
        name,
        float(dataset.fps),
        tuple(dataset.views),
        len(state),
        len(action),
        tuple(Field(slot.name, (slot.start, slot.stop)) for slot in state),
        tuple(Field(slot.name, (slot.start, slot.stop)) for slot in action),
    )
    return Body(robot, SlotMap(name, len(state), state), SlotMap(name, len(action), action), frame)


def _slots(names: Sequence[str]) -> tuple[Slot, ...]:
    """One slot per name; a unit may follow the name in brackets, as in ``hand_x [m]``."""
    slots = []
    for i, text in enumerate(names):
        name, _, unit = text.partition(" [")
        slots.append(Slot(name, unit.rstrip("]") or "1", i, i + 1))
    return tuple(slots)
