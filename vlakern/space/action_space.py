"""What a policy's vectors mean to one robot: native numbers to normalised slots and back.

Dimension letters: B rows, H chunk, N native numbers of a command, S native numbers of a state, W
indices of a slot map, P end-effectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from vlakern.errors import ConfigError, InputError
from vlakern.ops.action_decode import action_decode_out
from vlakern.space.embodiment import Embodiment, Field, check_embodiment, present
from vlakern.space.frames import Frame, Pose, encode, past_end
from vlakern.space.normalize import Normalizer
from vlakern.space.rotation import WIDTH, Rotation
from vlakern.space.slots import Slot, SlotMap

__all__ = ["ActionFrame", "ActionSpace", "Hand", "Plan", "hands", "make_plan"]

ActionFrame = Literal["native", "world_relative", "world_delta", "eef_relative", "eef_delta"]
KIND_CODES = {kind: code for code, kind in enumerate(WIDTH)}


@dataclass(frozen=True)
class Hand:
    """An end-effector: the fields of its position and rotation, and the slots they go to."""

    position: Field
    rotation: Field | None
    position_slot: Slot
    rotation_slot: Slot | None

    @property
    def name(self) -> str:
        """What the slots of this hand begin with."""
        return self.position.slot.removesuffix("_position")

    def read(self, native: Tensor) -> Pose:
        """The pose in ``native [..., N]``; a hand that never turns has the identity rotation.

        Raises:
            InputError: a quaternion that is not unit, or numbers that are not finite.
        """
        position = native[..., slice(*self.position.native)]
        if self.rotation is None or self.rotation.rotation is None:
            none = Rotation.identity(position.shape[:-1], native.dtype, native.device)
            return Pose(position, none)
        values = native[..., slice(*self.rotation.native)]
        rotation = Rotation.read(values, self.rotation.rotation, what=self.rotation.slot)
        return Pose(position, rotation)


def hands(fields: Sequence[Field], slots: SlotMap) -> tuple[Hand, ...]:
    """The end-effectors that ``fields`` hold: ``X_position`` with ``X_rotation``, if there is one."""
    by_slot = {field.slot: field for field in fields}
    found = []
    for field in fields:
        slot = slots.slot(field.slot)
        if slot.kind != "position" or not slot.name.endswith("eef_position"):
            continue
        twin = by_slot.get(slot.name.removesuffix("position") + "rotation")
        found.append(Hand(field, twin, slot, slots.slot(twin.slot) if twin else None))
    return tuple(found)


@dataclass(frozen=True)
class Plan:
    """The tables of ``action_decode``: what goes from slots to a command, and how.

    Attributes:
        copies: int32 ``[C, 3]``, affine: float32 ``[C, 2]``: numbers that pass through.
        poses: int32 ``[P, 6]``: end-effectors that are decoded from their frame.
    """

    copies: Tensor
    affine: Tensor
    poses: Tensor


def make_plan(robot: Embodiment, slots: SlotMap, frame: ActionFrame, binary: np.ndarray) -> Plan:
    """The plan of a robot's commands; with ``native`` everything passes through as it is."""
    framed = () if frame == "native" else hands(robot.action, slots)
    in_poses = {f.slot for hand in framed for f in (hand.position, hand.rotation) if f}
    copies, affine = [], []
    for field in robot.action:
        if field.slot in in_poses:
            continue
        start = slots.slot(field.slot).start
        scale, offset = (1.0, 0.0) if frame == "native" else field.affine
        for i in range(field.width):
            copies.append((start + i, field.native[0] + i, int(binary[start + i])))
            affine.append((1.0 / scale, -offset / scale))
    poses = [_pose_row(hand) for hand in framed]
    return Plan(
        torch.tensor(copies, dtype=torch.int32).reshape(-1, 3),
        torch.tensor(affine, dtype=torch.float32).reshape(-1, 2),
        torch.tensor(poses, dtype=torch.int32).reshape(-1, 6),
    )


def _pose_row(hand: Hand) -> tuple[int, ...]:
    if hand.rotation is None or hand.rotation_slot is None or hand.rotation.rotation is None:
        return hand.position_slot.start, -1, 0, hand.position.native[0], -1, 0
    return (
        hand.position_slot.start,
        hand.rotation_slot.start,
        KIND_CODES[hand.rotation_slot.kind],  # pyright: ignore[reportArgumentType]
        hand.position.native[0],
        hand.rotation.native[0],
        KIND_CODES[hand.rotation.rotation],
    )


class ActionSpace:
    """One robot, its slot maps, the parametrisation of its actions and their normalisation.

    The same object serves training (``unify``, ``encode``) and the robot (``encode_state``,
    ``decode``). Commands are absolute: poses of the hand in the frame of the state's poses [m],
    grippers and joints in native numbers. ``native`` as a frame means that the model predicts the
    numbers of the robot's own controller, whatever they are.

    Attributes:
        state_mask, action_mask: bool ``[W]``, the indices that this robot fills.
    """

    def __init__(
        self,
        robot: Embodiment,
        state_map: SlotMap,
        action_map: SlotMap,
        frame: ActionFrame,
        state: Normalizer,
        action: Normalizer,
    ) -> None:
        """Checks what the parts say about each other.

        Raises:
            ConfigError: a field that does not fit its map, statistics of another slot map, or a
                frame that needs a pose which the state does not have; each names the slot.
        """
        check_embodiment(robot, state_map, action_map, robot.name)
        if frame not in get_args(ActionFrame):
            raise ConfigError(
                f"action frame is {frame!r}, expected one of {', '.join(get_args(ActionFrame))}"
            )
        state.stats.check_names(state_map.names(), f"{robot.name}: state statistics")
        action.stats.check_names(action_map.names(), f"{robot.name}: action statistics")
        for part, fields, slots, stats in (
            ("state", robot.state, state_map, state.stats),
            ("action", robot.action, action_map, action.stats),
        ):
            lacking = present(fields, slots) & ~stats.present_mask
            if lacking.any():
                raise ConfigError(
                    f"{robot.name}: the {part} statistics lack slot"
                    f" {slots.names()[int(lacking.argmax())]!r}, which the robot has; compute them"
                    " from its data"
                )
        self.robot, self.frame = robot, frame
        self._state_map, self._action_map = state_map, action_map
        self._state, self._action = state, action
        self.state_mask = present(robot.state, state_map)
        self.action_mask = present(robot.action, action_map)
        self._hands = () if frame == "native" else hands(robot.action, action_map)
        self._bases = tuple(self._base_of(hand) for hand in self._hands)
        self._plan = make_plan(robot, action_map, frame, action.binary)
        offset, scale = action.affine()
        self._scale = torch.from_numpy(scale.astype(np.float32))
        self._offset = torch.from_numpy(offset.astype(np.float32))

    def _base_of(self, hand: Hand) -> Hand:
        """The state's pose of a commanded hand: what relative actions are relative to."""
        measured = {one.name: one for one in hands(self.robot.state, self._state_map)}
        base = measured.get(hand.name)
        if base is None:
            raise ConfigError(
                f"{self.robot.name}: frame {self.frame} needs slot {hand.position.slot!r} in the"
                " state, which does not have it; use the frame native"
            )
        turns = hand.rotation is not None
        if (turns or self.frame.startswith("eef")) and base.rotation is None:
            raise ConfigError(
                f"{self.robot.name}: frame {self.frame} needs slot '{hand.name}_rotation' in the"
                " state, which does not have it; use native or, for a hand that never turns, a"
                " world frame"
            )
        if self.frame == "eef_delta" and not turns:
            raise ConfigError(
                f"{self.robot.name}: frame eef_delta needs slot '{hand.name}_rotation' in the"
                " action, which does not have it; use another frame"
            )
        return base

    def base(self, state: np.ndarray) -> Tensor:
        """float32 ``[B, P, 7]``: position and quaternion w, x, y, z of each hand in ``[B, S]``."""
        wide = torch.from_numpy(np.asarray(state, np.float64))
        rows = [self._base_row(hand.read(wide)) for hand in self._bases]
        if not rows:
            return torch.zeros(len(wide), 0, 7)
        return torch.stack(rows, dim=1).float()

    @staticmethod
    def _base_row(pose: Pose) -> Tensor:
        return torch.cat([pose.position, pose.rotation.write("quaternion_wxyz")], dim=-1)

    def unify_state(self, state: np.ndarray) -> np.ndarray:
        """Native ``[..., S]`` to slots ``[..., W]`` in their units, float64; absent slots are 0.

        Raises:
            InputError: another width, numbers that are not finite, or a quaternion that is not
                unit, naming the slot.
        """
        state = self._checked(state, self.robot.state, self.robot.state_width, "state")
        unified = np.zeros((*state.shape[:-1], self._state_map.width))
        for field in self.robot.state:
            slot = self._state_map.slot(field.slot)
            values = state[..., slice(*field.native)]
            unified[..., _indices(slot, field)] = _to_slot(field, slot, values)
        return unified

    def encode_state(self, state: np.ndarray) -> np.ndarray:
        """Native ``[..., S]`` to the model's normalised float32 ``[..., W]``."""
        return self._state.encode(self.unify_state(state))

    def unify(
        self, commands: np.ndarray, state: np.ndarray, valid: np.ndarray | None = None
    ) -> np.ndarray:
        """Commands ``[..., H, N]`` to slots ``[..., H, W]`` in their units, float64.

        This is what statistics are computed of.

        Args:
            commands: the chunk's targets.
            state: at the chunk's start ``[..., S]``.
            valid: bool ``[..., H]``, False past the episode's end: a pose becomes the identity of
                its frame there; everything else must already hold its last value.

        Raises:
            InputError: as :meth:`unify_state`.
        """
        robot, slots = self.robot, self._action_map
        commands = self._checked(commands, robot.action, robot.action_width, "action")
        state = self._checked(state, robot.state, robot.state_width, "state")
        unified = np.zeros((*commands.shape[:-1], slots.width))
        framed = {f.slot for h in self._hands for f in (h.position, h.rotation) if f}
        for field in robot.action:
            if field.slot not in framed:
                values = commands[..., slice(*field.native)]
                slot = slots.slot(field.slot)
                plain = self.frame == "native"
                unified[..., _indices(slot, field)] = (
                    values if plain else _to_slot(field, slot, values)
                )
        for hand, base in zip(self._hands, self._bases, strict=True):
            self._unify_hand(unified, hand, base, commands, state, valid)
        return unified

    def _unify_hand(
        self,
        unified: np.ndarray,
        hand: Hand,
        base: Hand,
        commands: np.ndarray,
        state: np.ndarray,
        valid: np.ndarray | None,
    ) -> None:
        frame: Frame = self.frame  # pyright: ignore[reportAssignmentType]
        targets, start = hand.read(torch.from_numpy(commands)), base.read(torch.from_numpy(state))
        actions = encode(targets, start, frame)
        if valid is not None:
            actions = past_end(actions, torch.from_numpy(valid))
        slot = hand.position_slot
        unified[..., slot.start : slot.stop] = actions.position.numpy()
        turn = hand.rotation_slot
        if turn is not None:
            kind: Any = turn.kind
            unified[..., turn.start : turn.stop] = actions.rotation.write(kind).numpy()

    def encode(
        self, commands: np.ndarray, state: np.ndarray, valid: np.ndarray | None = None
    ) -> np.ndarray:
        """:meth:`unify`, normalised: float32 ``[..., H, W]``, what the model is trained on."""
        return self._action.encode(self.unify(commands, state, valid))

    def decode(self, x: Tensor, state: np.ndarray) -> np.ndarray:
        """The model's chunks ``[B, H, W]`` to commands, float32 ``[B, H, N]``, in one fused call.

        Args:
            x: normalised actions, any floating dtype; on the host.
            state: native ``[B, S]`` at the time of the observations.

        Raises:
            InputError: a command that is not finite, naming the slot, or a state that is wrong.
        """
        state = self._checked(state, self.robot.state, self.robot.state_width, "state")
        out = torch.empty(*x.shape[:2], self.robot.action_width)
        action_decode_out(
            x,
            self._scale,
            self._offset,
            self.base(state),
            self._plan.copies,
            self._plan.affine,
            self._plan.poses,
            frame="world_relative" if self.frame == "native" else self.frame,
            out=out,
        )
        commands = out.numpy()
        self._checked(commands, self.robot.action, self.robot.action_width, "predicted action")
        return commands

    def _checked(
        self, values: np.ndarray, fields: Sequence[Field], width: int, what: str
    ) -> np.ndarray:
        values = np.asarray(values)
        if values.ndim == 0 or values.shape[-1] != width or values.dtype.kind != "f":
            names = ", ".join(field.slot for field in fields)
            raise InputError(
                f"{what} is {values.dtype}{list(values.shape)}, {self.robot.name} has [..., {width}]"
                f" floating-point numbers ({names})"
            )
        finite = np.isfinite(values)
        if not finite.all():
            column = int(np.argwhere(~finite)[0][-1])
            inside = [f.slot for f in fields if f.native[0] <= column < f.native[1]]
            name = repr(inside[0]) if inside else "(in no slot)"
            raise InputError(
                f"{what} number {column}, slot {name}, is not finite; check the sensor or the model"
            )
        return values.astype(np.float64)


def _indices(slot: Slot, field: Field) -> slice:
    width = slot.width if field.rotation else field.width
    return slice(slot.start, slot.start + width)


def _to_slot(field: Field, slot: Slot, values: np.ndarray) -> np.ndarray:
    """Native numbers of one field in the representation and unit of its slot."""
    if field.rotation is not None:
        kind: Any = slot.kind
        read = Rotation.read(torch.from_numpy(values.copy()), field.rotation, what=field.slot)
        return read.write(kind).numpy()
    scale, offset = field.affine
    return values * scale + offset
