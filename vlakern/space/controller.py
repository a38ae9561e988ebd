"""Commands (absolute poses) to the numbers of a robot's own controller, and back.

Dimension letters: T steps, N numbers of a command or of the controller, S of a state. The controller
takes the pose's numbers in the columns where the command has them; all other columns are the same.
"""

from typing import cast

import numpy as np
import torch
from torch import Tensor

from vlakern.errors import ConfigError, InputError
from vlakern.space.action_space import Hand, hands
from vlakern.space.embodiment import Controller, Embodiment
from vlakern.space.frames import Frame, Pose, decode, encode
from vlakern.space.slots import SlotMap

__all__ = ["NativeControl"]

# Rounding of the last digits is not a command beyond the limit.
SLACK = 1e-6


class NativeControl:
    """Speaks to one robot's end-effector controller.

    Poses of states and commands are in the robot's base frame; a controller with ``world`` axes
    needs the base's pose in the world.
    """

    def __init__(self, robot: Embodiment, slots: SlotMap, base: Pose | None = None) -> None:
        """Args: base: pose ``[]`` of the robot's base in the world, float64; identity by default.

        Raises:
            ConfigError: the robot declares no controller, or has no end-effector to control.
        """
        if robot.controller is None:
            raise ConfigError(f"{robot.name} declares no controller; it takes commands as they are")
        self.controller: Controller = robot.controller
        self.robot = robot
        self._targets = hands(robot.action, slots)
        measured = {hand.name: hand for hand in hands(robot.state, slots)}
        missing = [hand.name for hand in self._targets if hand.name not in measured]
        if missing or not self._targets:
            raise ConfigError(
                f"{robot.name}: controller {self.controller.name} needs the slot"
                f" '{missing[0] if missing else 'right_eef'}_position' in state and action"
            )
        self._measured = [measured[hand.name] for hand in self._targets]
        for hand in self._targets:
            kind = hand.rotation.rotation if hand.rotation else self.controller.rotation
            if kind != self.controller.rotation:
                raise ConfigError(
                    f"{robot.name}: slot '{hand.name}_rotation' is commanded as {kind}, controller"
                    f" {self.controller.name} takes {self.controller.rotation}; declare one of them"
                )
        self._base = base if self.controller.coordinates == "world" else None

    def to_native(
        self, command: np.ndarray, state: np.ndarray, last: np.ndarray | None = None
    ) -> np.ndarray:
        """What the controller takes to reach ``command [..., N]`` from ``state [..., S]``, float32.

        Args:
            last: the command before this one ``[..., N]``, for a controller whose steps start from
                what was commanded; None before the first one, which starts from the state.

        Raises:
            InputError: the step is larger than the controller's limit, naming slot and size.
        """
        out = np.array(command, np.float64)
        start_from_last = self.controller.reference == "commanded" and last is not None
        for target, measured in zip(self._targets, self._measured, strict=True):
            goal = self._outside(target.read(_wide(command)))
            start = target.read(_wide(last)) if start_from_last else measured.read(_wide(state))
            action = self._step(goal, self._outside(start))
            self._write(out, target, action)
        return out.astype(np.float32)

    def to_commands(self, native: np.ndarray, states: np.ndarray) -> np.ndarray:
        """What recorded controller numbers ``[T, N]`` at ``states [T, S]`` commanded, float64.

        Recorded deltas become the absolute targets that they stood for, which is what the four
        parametrisations are defined on.
        """
        out = np.array(native, np.float64)
        for target, measured in zip(self._targets, self._measured, strict=True):
            actions = self._read(out, target)
            start = self._outside(measured.read(_wide(states)))
            self._write_pose(out, target, self._inside(self._goals(actions, start)))
        return out

    def _step(self, goal: Pose, start: Pose) -> Pose:
        if self.controller.frame == "absolute":
            return goal
        frame = cast(Frame, self.controller.frame)
        return encode(goal[..., None], start, frame)[..., 0]

    def _goals(self, actions: Pose, start: Pose) -> Pose:
        if self.controller.frame == "absolute":
            return actions
        frame = cast(Frame, self.controller.frame)
        if self.controller.reference == "commanded":
            return decode(actions, start[0], frame)
        return decode(actions[:, None], start, frame)[:, 0]

    def _outside(self, pose: Pose) -> Pose:
        """From the base frame to the axes of the controller."""
        return pose if self._base is None else self._base @ pose

    def _inside(self, pose: Pose) -> Pose:
        return pose if self._base is None else self._base.inverse() @ pose

    def _read(self, native: np.ndarray, target: Hand) -> Pose:
        scaled = native.copy()
        scaled[..., slice(*target.position.native)] *= self.controller.position_scale
        if target.rotation is not None:
            scaled[..., slice(*target.rotation.native)] *= self.controller.rotation_scale
        return target.read(_wide(scaled))

    def _write(self, out: np.ndarray, target: Hand, action: Pose) -> None:
        self._write_pose(out, target, action)
        columns = [(target.position, self.controller.position_scale, "m")]
        if target.rotation is not None:
            columns.append((target.rotation, self.controller.rotation_scale, "rad"))
        for field, scale, unit in columns:
            values = out[..., slice(*field.native)]
            values /= scale
            largest = float(np.abs(values).max(initial=0.0))
            limit = self.controller.limit
            if limit is not None and largest > limit * (1 + SLACK):
                raise InputError(
                    f"slot {field.slot!r}: the step asks for {largest * scale:.4g} {unit},"
                    f" {self.controller.name} of {self.robot.name} takes at most"
                    f" {limit * scale:.4g} {unit}; command smaller steps"
                )

    @staticmethod
    def _write_pose(out: np.ndarray, target: Hand, pose: Pose) -> None:
        out[..., slice(*target.position.native)] = pose.position.numpy()
        if target.rotation is not None and target.rotation.rotation is not None:
            turned = pose.rotation.write(target.rotation.rotation)
            out[..., slice(*target.rotation.native)] = turned.numpy()


def _wide(values: np.ndarray | None) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float64))
