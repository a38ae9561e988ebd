"""What a policy's vectors mean to one robot: native numbers to normalised slots and back.

Dimension letters: B rows, H chunk, N native numbers of a command, S native numbers of a state, W
indices of a slot map, P end-effectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from vlakern.errors import ConfigError, InputError
from vlakern.ops.action_decode import action_decode_out
from vlakern.space.arrays import read_array
from vlakern.space.decoder import Decoder, Decoders, base_rows, check_switches
from vlakern.space.embodiment import (
    Embodiment,
    Field,
    check_embodiment,
    check_relative,
    check_vector,
    present,
)
from vlakern.space.frames import Frame, encode, past_end
from vlakern.space.hands import Hand, hands
from vlakern.space.normalize import Normalizer
from vlakern.space.rotation import WIDTH, Rotation
from vlakern.space.slots import Slot, SlotMap

__all__ = ["ActionFrame", "ActionSpace", "Plan", "make_plan"]

ActionFrame = Literal["native", "world_relative", "world_delta", "eef_relative", "eef_delta"]
KIND_CODES = {kind: code for code, kind in enumerate(WIDTH)}


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
        relative: Sequence[int] = (),
    ) -> None:
        """Checks what the parts say about each other.

        Args:
            relative: numbers of a command that are predicted as what they are more than the number
                of the same index in the state, for the frame ``native``.

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
        self.robot = robot
        self.frame: ActionFrame = frame
        self._state_map, self._action_map = state_map, action_map
        self.state_mask = present(robot.state, state_map)
        self.action_mask = present(robot.action, action_map)
        self._state = _restricted(state, self.state_mask)
        self._action = _restricted(action, self.action_mask)
        self._hands = () if frame == "native" else hands(robot.action, action_map)
        measured = hands(robot.state, state_map)
        self._bases = tuple(_base_of(hand, measured, robot, frame) for hand in self._hands)
        framed = {f.slot for hand in self._hands for f in (hand.position, hand.rotation) if f}
        self._plain = tuple(field for field in robot.action if field.slot not in framed)
        for field in self._plain:
            _check_plain(field, action_map.slot(field.slot), robot, frame)
        if frame != "native" and not self._hands:
            raise ConfigError(
                f"{robot.name}: frame {frame} needs a slot of kind position in the action, such as"
                " 'right_eef_position', and there is none; use the frame native"
            )
        self._plan = make_plan(robot, action_map, frame, self._action.binary)
        self._two_valued = np.flatnonzero(self._action.binary | self._action.threshold)
        offset, scale = self._action.affine()
        self._scale = torch.from_numpy(scale.astype(np.float32))
        self._offset = torch.from_numpy(offset.astype(np.float32))
        self._decoders = Decoders(self._make_decoder)
        if relative and frame != "native":
            raise ConfigError(
                f"{robot.name}: relative numbers are for the frame native, found frame {frame}"
            )
        self._relative = check_relative(relative, robot)
        self._switches = _switches(self._plain, action_map, frame, self._action.threshold)

    def base(self, state: np.ndarray) -> Tensor:
        """float32 ``[B, P, 7]``: position and quaternion w, x, y, z of each hand in ``[B, S]``."""
        wide = self._check_state(state)
        out = np.zeros((len(wide), len(self._bases), 7), np.float32)
        base_rows(self._bases, wide, out)
        return torch.from_numpy(out)

    def unify_state(self, state: np.ndarray) -> np.ndarray:
        """Native ``[..., S]`` to slots ``[..., W]`` in their units, float64; absent slots are 0.

        Raises:
            InputError: another width, numbers that are not finite, or a quaternion that is not
                unit, naming the slot.
        """
        state = self._check_state(state)
        unified = np.zeros((*state.shape[:-1], self._state_map.width))
        for field in self.robot.state:
            slot = self._state_map.slot(field.slot)
            values = state[..., slice(*field.native)]
            unified[..., _indices(slot, field)] = _to_slot(field, slot, values)
        return unified

    def encode_state(self, state: np.ndarray, dtype: type[np.floating] = np.float32) -> np.ndarray:
        """Native ``[..., S]`` to the model's normalised ``[..., W]``."""
        return self._state.encode(self.unify_state(state), dtype)

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
            InputError: as :meth:`unify_state`, or a ``valid`` of another shape or dtype.
        """
        slots, commands = self._action_map, self._check_command(commands, "action")
        state = self._check_state(state)
        if commands.ndim < 2 or state.shape[:-1] != commands.shape[:-2]:
            raise InputError(
                f"action is {list(commands.shape)} beside a state {list(state.shape)}, expected"
                " [..., H, N] beside [..., S]: one state per chunk"
            )
        valid = None if valid is None else _flags(valid, commands.shape[:-1])
        if self._relative:
            commands[..., self._relative] -= state[..., None, self._relative]
        unified = np.zeros((*commands.shape[:-1], slots.width))
        for field in self._plain:
            values, slot = commands[..., slice(*field.native)], slots.slot(field.slot)
            unified[..., _indices(slot, field)] = (
                values if self.frame == "native" else _to_slot(field, slot, values)
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
        state, width = self._check_state(state), self._action_map.width
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.device.type != "cpu":
            raise InputError(
                f"chunks are {getattr(x, 'dtype', type(x).__name__)}, expected a floating-point"
                " tensor on the host; call .cpu() on a GPU's"
            )
        if x.ndim != 3 or x.shape[2] != width or state.ndim != 2 or len(state) != len(x):
            raise InputError(
                f"chunks are {list(x.shape)} beside a state {list(state.shape)}, expected"
                f" [B, H, {width}] beside [B, {self.robot.state_width}]: one state per chunk"
            )
        check_switches(x, self._two_valued, self._action_map)
        commands = self._decoders(x.detach(), state)
        for column, scale, offset in self._switches:
            number = commands[..., column] * scale + offset
            value = np.where(number > 0.5, (1.0 - offset) / scale, -offset / scale)
            commands[..., column] = np.where(np.isfinite(number), value, number)
        if self._relative:
            commands[..., self._relative] += state[:, None, self._relative].astype(np.float32)
        self._check_command(commands, "predicted action")
        return commands

    def _make_decoder(self, rows: int, chunk: int) -> Decoder:
        widths = self._action_map.width, self.robot.action_width
        decoder = Decoder(rows, chunk, *widths, self._bases)
        decoder.run = action_decode_out(
            decoder.x,
            self._scale,
            self._offset,
            decoder.base,
            self._plan.copies,
            self._plan.affine,
            self._plan.poses,
            frame="world_relative" if self.frame == "native" else self.frame,
            out=decoder.out,
        )
        return decoder

    def _check_state(self, state: np.ndarray) -> np.ndarray:
        robot = self.robot
        return check_vector(state, robot.state, robot.state_width, robot.name, "state")

    def _check_command(self, commands: np.ndarray, what: str) -> np.ndarray:
        robot = self.robot
        return check_vector(commands, robot.action, robot.action_width, robot.name, what)


def _flags(valid: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    valid = read_array(valid, "valid")
    if valid.dtype != np.bool_ or valid.shape != shape:
        raise InputError(
            f"valid is {valid.dtype}{list(valid.shape)}, expected bool{list(shape)}; give one flag"
            " per step of the chunk"
        )
    return valid


def _switches(
    fields: Sequence[Field], slots: SlotMap, frame: ActionFrame, threshold: np.ndarray
) -> list[tuple[int, float, float]]:
    """Native index, scale and offset of every number whose slot is 0 or 1."""
    found = []
    for field in fields:
        scale, offset = (1.0, 0.0) if frame == "native" else field.affine
        start = slots.slot(field.slot).start
        for i in range(field.width):
            if threshold[start + i]:
                found.append((field.native[0] + i, scale, offset))
    return found


def _restricted(whole: Normalizer, mask: np.ndarray) -> Normalizer:
    """Statistics of many robots leave the slots that this one lacks as they are: 0."""
    stats = whole.stats
    here = tuple(bool(one) for one in stats.present_mask & mask)
    return replace(whole, stats=replace(stats, present=here))


def _base_of(hand: Hand, measured: Sequence[Hand], robot: Embodiment, frame: ActionFrame) -> Hand:
    """The state's pose of a commanded hand: what its actions are relative to."""
    base, rotation = hand.state_of(measured), f"'{hand.name}_rotation'"
    if base is None:
        raise ConfigError(
            f"{robot.name}: frame {frame} needs slot {hand.position.slot!r} in the state, which"
            " does not have it; use the frame native"
        )
    if frame.startswith("eef") and hand.rotation is None:
        raise ConfigError(
            f"{robot.name}: frame {frame} needs slot {rotation} in the action, which does not have"
            " it; a hand that never turns has the world frames and native"
        )
    if hand.rotation is not None and base.rotation is None:
        raise ConfigError(
            f"{robot.name}: frame {frame} needs slot {rotation} in the state, which does not have"
            " it; use the frame native"
        )
    return base


def _check_plain(field: Field, slot: Slot, robot: Embodiment, frame: ActionFrame) -> None:
    """A rotation needs its position to be framed, and its own kind to be copied."""
    if field.rotation is None:
        return
    if frame != "native":
        raise ConfigError(
            f"{robot.name}: slot {slot.name!r} of the action is a rotation without the slot"
            f" {slot.name.removesuffix('rotation') + 'position'!r} of kind position, so frame"
            f" {frame} does not know it; declare both, or use the frame native"
        )
    if field.rotation != slot.kind:
        raise ConfigError(
            f"{robot.name}: frame native passes numbers as they are, but slot {slot.name!r} is"
            f" {slot.kind} and the action has {field.rotation}; use one of the other frames"
        )


def _indices(slot: Slot, field: Field) -> slice:
    width = slot.width if field.rotation else field.width
    return slice(slot.start, slot.start + width)


def _to_slot(field: Field, slot: Slot, values: np.ndarray) -> np.ndarray:
    """Native numbers of one field in the representation and unit of its slot."""
    if field.rotation is not None:
        kind: Any = slot.kind
        what = f"slot {field.slot!r}"
        read = Rotation.read(torch.from_numpy(values.copy()), field.rotation, what=what)
        return read.write(kind).numpy()
    scale, offset = field.affine
    return values * scale + offset
