"""Commands (absolute poses) to the numbers of a robot's own controller, and back.

Dimension letters: T steps, N numbers of a command or of the controller, S of a state. The
controller takes the pose's numbers in the columns where the command has them; all other columns are
the same.
"""

from collections.abc import Sequence
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from vlakern.errors import ConfigError, InputError
from vlakern.space.embodiment import Controller, Embodiment, check_vector
from vlakern.space.frames import Frame, Pose, decode, encode
from vlakern.space.hands import Hand, hands
from vlakern.space.slots import SlotMap

__all__ = ["Limit", "NativeControl"]

Limit = Literal["refuse", "clip"]
# Of the limit: what fp32 leaves of a small difference of positions is no command beyond it.
SLACK = 1e-4


class NativeControl:
    """Speaks to one robot's end-effector controller.

    Poses of states and commands are in the robot's base frame; a controller with ``world`` axes
    needs the base's pose in the world.
    """

    def __init__(self, robot: Embodiment, slots: SlotMap, base: Pose | None = None) -> None:
        """Args: base: pose ``[]`` of the robot's base in the world, float64; identity by default.

        Raises:
            ConfigError: the robot declares no controller, or has no end-effector to control, or
                commands it in other numbers than the controller takes; each names the slot.
        """
        if robot.controller is None:
            raise ConfigError(f"{robot.name} declares no controller; it takes commands as they are")
        self.robot, self.controller = robot, robot.controller
        self._targets = hands(robot.action, slots)
        self._measured = _measured(robot, self._targets, hands(robot.state, slots))
        # Each step is on its own, where relative and delta are the same.
        frame = self.controller.frame.replace("relative", "delta")
        self._frame: Frame | None = None if frame == "absolute" else cast(Frame, frame)
        self._base = base if self.controller.coordinates == "world" else None
        self._columns = _columns(self._targets, self.controller)

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
                what was commanded; None before the first one, which starts from the state. Where a
                step was clipped, it is what :meth:`to_command` says of the clipped one.
            limit: of a step beyond the controller's limit: ``refuse`` it, or ``clip`` every number
                as a simulator's own controller does, so that a rollout goes on and the next chunk
                starts from what was reached.

        Raises:
            InputError: such a step if it is refused, naming slot and size; or numbers that are not
                finite, not a pose, or too few.
        """
        wide, start = self._wide(command, "action"), self._start(state, last)
        out = torch.from_numpy(wide.copy())
        for target, begin in zip(self._targets, start, strict=True):
            goal = target.read(torch.from_numpy(wide))
            target.write(self._step(self._outside(goal), self._outside(begin)), out)
        native = out.numpy()
        for _, columns, scale, _ in self._columns:
            native[..., columns] /= scale
        self._limited(native, limit)
        return native.astype(np.float32)

    def to_command(
        self, native: np.ndarray, state: np.ndarray, last: np.ndarray | None = None
    ) -> np.ndarray:
        """What numbers ``[..., N]`` of the controller command: :meth:`to_native` back, float64."""
        values, start = self._scaled(native), self._start(state, last)
        out = values.clone()
        for target, begin in zip(self._targets, start, strict=True):
            goal = self._goal(target.read(values), self._outside(begin))
            target.write(self._inside(goal), out)
        return out.numpy()

    def to_commands(self, native: np.ndarray, states: np.ndarray) -> np.ndarray:
        """What recorded controller numbers ``[..., T, N]`` commanded, float64 absolute targets.

        Args:
            states: ``[..., T, S]``, the one before each step. Where steps start from what was
                commanded only the first is read, ``[..., 1, S]`` will do, and the steps add up from
                there.
        """
        if self.controller.reference == "achieved" or self._frame is None:
            return self.to_command(native, states)
        values, states = self._scaled(native), self._check_state(states)
        if values.ndim < 2 or states.ndim != values.ndim:
            raise InputError(
                f"actions are {list(values.shape)} beside states {list(states.shape)}, expected"
                " [..., T, N] beside [..., T, S]"
            )
        out, start = values.clone(), self._start(states[..., 0, :], None)
        for target, begin in zip(self._targets, start, strict=True):
            goals = decode(target.read(values), self._outside(begin), self._frame)
            target.write(self._inside(goals), out)
        return out.numpy()

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
        """From the base frame to the axes of the controller."""
        return pose if self._base is None else self._base @ pose

    def _inside(self, pose: Pose) -> Pose:
        return pose if self._base is None else self._base.inverse() @ pose

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


def _measured(
    robot: Embodiment, targets: Sequence[Hand], measured: Sequence[Hand]
) -> tuple[Hand, ...]:
    """The state's end-effectors that the controller's steps start from, checked."""
    controller = cast(Controller, robot.controller)
    if not targets:
        raise ConfigError(
            f"{robot.name}: controller {controller.name} needs a slot of kind position in the"
            " action, such as 'right_eef_position'"
        )
    found = []
    for target in targets:
        base, rotation = target.state_of(measured), f"'{target.name}_rotation'"
        if base is None or (target.rotation is not None and base.rotation is None):
            lacking = rotation if base else f"'{target.name}_position'"
            raise ConfigError(
                f"{robot.name}: controller {controller.name} needs slot {lacking} in the state,"
                " which does not have it"
            )
        kind = target.rotation.rotation if target.rotation else controller.rotation
        if kind != controller.rotation:
            raise ConfigError(
                f"{robot.name}: slot {rotation} is commanded as {kind}, controller"
                f" {controller.name} takes {controller.rotation}; declare one of them"
            )
        if controller.frame.startswith("eef") and target.rotation is None:
            raise ConfigError(
                f"{robot.name}: controller {controller.name} in frame {controller.frame} needs"
                f" slot {rotation} in the action, which does not have it"
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
