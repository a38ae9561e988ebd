"""Chunks in the numbers of a robot's own controller, as the absolute commands that a loop sends.

Dimension letters: H steps of a chunk, K of a prefix, N numbers of a command, S of a state.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from vlakern.errors import ConfigError
from vlakern.space.controller import NativeControl
from vlakern.types import ActionPrefix

__all__ = ["NativeChunks", "native_chunks"]


class NativeChunks:
    """Adds up the steps of chunks, each from where the one before it was to end.

    Chunks of a loop say where the robot is at an instant, a controller's step where it goes from
    there. So the first row is what was commanded when the policy looked, and H steps of a pose give
    H + 1 rows; without it every chunk would begin a step ahead of the one before. Numbers that are
    no pose, such as a gripper's, are for the time from their row to the next.

    A robot that keeps up with its commands does what it would do with the controller's own numbers;
    and one that is to stop holds a pose, where the same number once more would be one more step.
    """

    def __init__(self, control: NativeControl) -> None:
        self._control = control
        self._others = np.setdiff1d(np.arange(control.robot.action_width), control.steered)

    def to_commands(
        self, native_HN: np.ndarray, state_S: np.ndarray, commanded_N: np.ndarray
    ) -> np.ndarray:
        """Absolute commands ``[H + 1, N]`` float64 of a chunk that was made from ``state_S``."""
        found = [np.asarray(commanded_N, np.float64)]
        for native_N in native_HN:
            found.append(self._control.to_command(native_N, state_S, found[-1]))
        rows = np.stack(found)
        rows[:-1, self._others] = rows[1:, self._others].copy()
        return rows

    def to_prefix(
        self, prefix: ActionPrefix, state_S: np.ndarray, commanded_N: np.ndarray
    ) -> ActionPrefix | None:
        """A prefix of commands in the controller's numbers; steps beyond its limit are clipped.

        None where it holds one instant, from which no step goes on.
        """
        goals = np.array(prefix.actions[1:], np.float64)
        goals[:, self._others] = prefix.actions[:-1, self._others]
        last = np.asarray(commanded_N, np.float64)
        found = []
        for command_N in goals:
            native = self._control.to_native(command_N, state_S, last, limit="clip")
            found.append(native)
            last = self._control.to_command(native, state_S, last)
        if not found:
            return None
        return replace(prefix, actions=np.stack(found), frozen=min(prefix.frozen, len(found)))


def native_chunks(policy: Any) -> NativeChunks | None:
    """For a policy whose frame is ``native``, None for one that gives commands.

    Raises:
        ConfigError: the controller's steps start from the achieved pose: they do not add up.
    """
    if getattr(policy, "frame", None) != "native" or policy.robot.controller is None:
        return None
    control = policy.control
    if control.controller.reference == "achieved":
        raise ConfigError(
            f"{policy.robot.name}: steps of {control.controller.name} start from the pose that is"
            " achieved, which nobody knows ahead; use a policy in another frame, or wrap it"
        )
    return NativeChunks(control)
