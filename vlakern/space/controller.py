"""Commands (absolute poses) to the numbers of a robot's own controller, and back.

Dimension letters: T steps, N numbers of a command or of the controller, S of a state. The
controller takes the pose's numbers in the columns where the command has them; all other columns are
the same.
"""

from collections.abc import Sequence
from typing import Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from vlakern.errors import ConfigError, InputError
from vlakern.space.embodiment import Controller, Embodiment, check_controlled, check_vector
from vlakern.space.frames import Frame, Pose, decode, encode
from vlakern.space.hands import Hand, hands
from vlakern.space.rotation import Rotation
from vlakern.space.slots import SlotMap

__all__ = ["Limit", "NativeControl"]

Limit = Literal["refuse", "clip"]
# Of the limit: what fp32 leaves of a small difference of positions is no command beyond it.
SLACK = 1e-4
# A turn by less than this [rad] is none: what fp32 leaves of the same rotation written twice.
SAME_ROTATION = 1e-6
# In a controller's unit, for a rotation of 0 where exactly 0 would mean another one.
NEARLY_ZERO = 1e-6


class NativeControl:
    """Speaks to one robot's end-effector controller.

    Poses of states and commands are in the frame that ``robot.poses`` names; a controller with
    other axes needs the base's pose in the world. Numbers of an ``eef`` frame need it never.

    A controller with ``keeps_rotation`` holds the last commanded orientation where the numbers of a
    rotation are exactly 0. So a command with that orientation is sent as 0, and a command to turn
    by nothing from the achieved pose as 1e-6 of a unit, which is not 0.
    """

    def __init__(self, robot: Embodiment, slots: SlotMap, base: Pose | None = None) -> None:
        """Args: base: pose ``[]`` of the robot's base in the world, float64.

        Raises:
            ConfigError: the robot declares no controller, or has no end-effector to control, or
                commands it in other numbers than the controller takes, each naming the slot; or
                poses and controller have different axes and there is no base.
            InputError: a base of another shape or dtype.
        """
        if robot.controller is None:
            raise ConfigError(f"{robot.name} declares no controller; it takes commands as they are")
        self.robot, self.controller = robot, robot.controller
        check_controlled(robot, slots, robot.name)
        self._targets = hands(robot.action, slots)
        self._measured = _measured(robot, self._targets, hands(robot.state, slots))
        # Each step is on its own, where relative and delta are the same.
        frame = self.controller.frame.replace("relative", "delta")
        self._frame: Frame | None = None if frame == "absolute" else cast(Frame, frame)
        self._axes = _axes(robot, self.controller, base)
        self._columns = _columns(self._targets, self.controller)

    @property
    def steered(self) -> list[int]:
        """Columns of a command that are a pose's; the controller passes all others on."""
        return [i for _, at, _, _ in self._columns for i in range(at.start, at.stop)]

    def to_native(
        self,
        command: np.ndarray,
        state: np.ndarray,
        last: np.ndarray | None = None,
        limit: Limit = "refuse",
    ) -> np.ndarray:
        """What the controller takes to reach ``command [..., N]`` from ``state [..., S]``, float32.

        Args:
            last: the command before this one ``[..., N]``, for a controller whose steps start from
                what was commanded or which keeps its rotation; None before the first one, which
                starts from the state. Where a step was clipped, it is what :meth:`to_command` says
                of the clipped one.
            limit: of a step beyond the controller's limit: ``refuse`` it, or ``clip`` every number
                as a simulator's own controller does, so that a rollout goes on and the next chunk
                starts from what was reached.

        Raises:
            InputError: such a step if it is refused, naming slot and size; numbers that are not
                finite, not a pose, or too few; or another limit.
        """
        if limit not in get_args(Limit):
            raise InputError(
                f"limit is {limit!r}, expected one of {', '.join(get_args(Limit))}; refuse reports"
                " a step that is too large, clip shortens it"
            )
        wide, start = self._wide(command, "action"), self._start(state, last)
        out = torch.from_numpy(wide.copy())
        for target, begin in zip(self._targets, start, strict=True):
            goal = target.read(torch.from_numpy(wide))
            target.write(self._step(self._outside(goal), self._outside(begin)), out)
        native = out.numpy()
        for _, columns, scale, _ in self._columns:
            native[..., columns] /= scale
        kept = self._kept_targets(wide, last)
        for columns, same in kept:
            native[..., columns][same] = 0.0
        self._limited(native, limit)
        found = native.astype(np.float32)
        for columns, same in kept:
            rotation = found[..., columns]
            rotation[..., 0][(rotation == 0).all(-1) & ~same] = NEARLY_ZERO
        return found

    def to_command(
        self, native: np.ndarray, state: np.ndarray, last: np.ndarray | None = None
    ) -> np.ndarray:
        """What numbers ``[..., N]`` of the controller command: :meth:`to_native` back, float64."""
        values, start = self._scaled(native), self._start(state, last)
        out = values.clone()
        for target, begin in zip(self._targets, start, strict=True):
            goal = self._goal(target.read(values), self._outside(begin))
            target.write(self._inside(goal), out)
        found = out.numpy()
        if last is not None and self.controller.keeps_rotation:
            before = self._before(last, found.shape)
            for columns in self._rotations():
                still = (values.numpy()[..., columns] == 0).all(-1)
                found[..., columns][still] = before[..., columns][still]
        return found

    def to_commands(self, native: np.ndarray, states: np.ndarray) -> np.ndarray:
        """What recorded controller numbers ``[..., T, N]`` commanded, float64 absolute targets.

        Args:
            states: ``[..., T, S]``, the one before each step. Where steps start from what was
                commanded only the first is read, ``[..., 1, S]`` will do, and the steps add up from
                there. Where the controller keeps its rotation, steps of rotation 0 have that of the
                step before them; the first one has the achieved rotation.
        """
        keeps = self.controller.keeps_rotation
        on_their_own = self.controller.reference == "achieved" and not keeps
        if on_their_own or self._frame is None:
            return self.to_command(native, states)
        values, states = self._scaled(native), self._check_state(states)
        if values.ndim < 2 or states.ndim != values.ndim:
            raise InputError(
                f"actions are {list(values.shape)} beside states {list(states.shape)}, expected"
                " [..., T, N] beside [..., T, S]; give one state per step"
            )
        if keeps:
            return self._hold_rotations(values.numpy(), self.to_command(native, states))
        out, start = values.clone(), self._start(states[..., 0, :], None)
        for target, begin in zip(self._targets, start, strict=True):
            goals = decode(target.read(values), self._outside(begin), self._frame)
            target.write(self._inside(goals), out)
        return out.numpy()

    def _rotations(self) -> list[slice]:
        """The columns of every commanded rotation."""
        return [slice(*target.rotation.native) for target in self._targets if target.rotation]

    def _hold_rotations(self, values: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """``goals [..., T, N]`` with the last rotation before each step of rotation 0."""
        steps = np.arange(goals.shape[-2])
        for columns in self._rotations():
            moved = (values[..., columns] != 0).any(-1)
            latest = np.maximum.accumulate(np.where(moved, steps, 0), axis=-1)
            turns = goals[..., columns]
            goals[..., columns] = np.take_along_axis(turns, latest[..., None], axis=-2)
        return goals

    def _kept_targets(
        self, command: np.ndarray, last: np.ndarray | None
    ) -> list[tuple[slice, np.ndarray]]:
        """Columns of rotations, and where the command is the one before it, if those are kept."""
        if not self.controller.keeps_rotation:
            return []
        if last is None:
            return [(columns, np.zeros(command.shape[:-1], bool)) for columns in self._rotations()]
        before, found = self._before(last, command.shape), []
        for columns in self._rotations():
            goal, held = (
                Rotation.read(torch.from_numpy(values[..., columns]), self.controller.rotation)
                for values in (command, before)
            )
            angle = goal.compose(held.inverse()).angle().numpy()
            found.append((columns, angle < SAME_ROTATION))
        return found

    def _before(self, last: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The command before those of this shape, checked."""
        wide = self._wide(last, "last action")
        if wide.shape != shape:
            raise InputError(
                f"last action is {list(wide.shape)} beside actions {list(shape)}, expected the same"
                " shape; give one last command per action"
            )
        return wide

    def _start(self, state: np.ndarray, last: np.ndarray | None) -> list[Pose]:
        """Where the step of each end-effector begins."""
        if self.controller.reference == "commanded" and last is not None:
            wide = torch.from_numpy(self._wide(last, "last action"))
            return [target.read(wide) for target in self._targets]
        wide = torch.from_numpy(self._check_state(state))
        return [hand.read(wide) for hand in self._measured]

    def _step(self, goal: Pose, start: Pose) -> Pose:
        if self._frame is None:
            return goal
        return encode(goal[..., None], start, self._frame)[..., 0]

    def _goal(self, action: Pose, start: Pose) -> Pose:
        if self._frame is None:
            return action
        return decode(action[..., None], start, self._frame)[..., 0]

    def _outside(self, pose: Pose) -> Pose:
        """From the frame of the robot's poses to the axes of the controller."""
        return pose if self._axes is None else self._axes @ pose

    def _inside(self, pose: Pose) -> Pose:
        return pose if self._axes is None else self._axes.inverse() @ pose

    def _limited(self, native: np.ndarray, limit: Limit) -> None:
        most = self.controller.limit
        if most is None:
            return
        for slot, columns, scale, unit in self._columns:
            values = native[..., columns]
            largest = float(np.abs(values).max(initial=0.0))
            if limit == "clip":
                np.clip(values, -most, most, out=values)
            elif largest > most * (1 + SLACK):
                raise InputError(
                    f"slot {slot!r}: the step asks for {largest * scale:.4g} {unit},"
                    f" {self.controller.name} of {self.robot.name} takes at most"
                    f" {most * scale:.4g} {unit}; command smaller steps, or clip"
                )

    def _scaled(self, native: np.ndarray) -> Tensor:
        """Numbers of the controller in [m] and [rad]."""
        values = self._wide(native, "action")
        for _, columns, scale, _ in self._columns:
            values[..., columns] *= scale
        return torch.from_numpy(values)

    def _wide(self, values: np.ndarray, what: str) -> np.ndarray:
        robot = self.robot
        return check_vector(values, robot.action, robot.action_width, robot.name, what)

    def _check_state(self, state: np.ndarray) -> np.ndarray:
        robot = self.robot
        return check_vector(state, robot.state, robot.state_width, robot.name, "state")


def _axes(robot: Embodiment, controller: Controller, base: Pose | None) -> Pose | None:
    """The frame of the robot's poses in the axes of the controller; None where both are one."""
    if controller.coordinates == robot.poses or controller.frame.startswith("eef"):
        return None
    if base is None:
        raise ConfigError(
            f"{robot.name}: its poses are in the {robot.poses} frame, controller {controller.name}"
            f" has {controller.coordinates} axes, and no base is given; give NativeControl the"
            " base's pose in the world, or declare poses and controller.coordinates alike"
        )
    if base.shape != () or base.position.dtype != torch.float64:
        raise InputError(
            f"base is {list(base.shape)} of {base.position.dtype}, expected one pose [] of"
            " torch.float64; give the pose of this robot's base in the world"
        )
    return base if robot.poses == "base" else base.inverse()


def _measured(
    robot: Embodiment, targets: Sequence[Hand], measured: Sequence[Hand]
) -> tuple[Hand, ...]:
    """The state's end-effectors that the controller's steps start from, checked."""
    controller = cast(Controller, robot.controller)
    if not targets:
        raise ConfigError(
            f"{robot.name}: controller {controller.name} needs a slot of kind position in the"
            " action, such as 'right_eef_position'; declare one, or no controller"
        )
    found = []
    for target in targets:
        base, rotation = target.state_of(measured), f"'{target.name}_rotation'"
        if base is None or (target.rotation is not None and base.rotation is None):
            lacking = rotation if base else f"'{target.name}_position'"
            raise ConfigError(
                f"{robot.name}: controller {controller.name} needs slot {lacking} in the state,"
                " which does not have it; declare it there"
            )
        if controller.frame.startswith("eef") and target.rotation is None:
            raise ConfigError(
                f"{robot.name}: controller {controller.name} in frame {controller.frame} needs"
                f" slot {rotation} in the action, which does not have it; declare it there"
            )
        found.append(base)
    return tuple(found)


def _columns(
    targets: Sequence[Hand], controller: Controller
) -> tuple[tuple[str, slice, float, str], ...]:
    """Slot, columns, size of a native unit and its name, of all that the controller takes."""
    found = []
    for target in targets:
        position, rotation = target.position, target.rotation
        found.append((position.slot, slice(*position.native), controller.position_scale, "m"))
        if rotation is not None:
            scale = controller.rotation_scale
            found.append((rotation.slot, slice(*rotation.native), scale, "rad"))
    return tuple(found)
