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

    The first one starts from what was commanded when the policy looked. A robot that keeps up with
    its commands does what it would do with the controller's own numbers; and one that is to stop
    holds a pose, where the same number once more would be one more step.
    """

    def __init__(self, control: NativeControl) -> None:
        self._control = control

    def to_commands(
        self, native_HN: np.ndarray, state_S: np.ndarray, commanded_N: np.ndarray
    ) -> np.ndarray:
        """Absolute commands ``[H, N]`` float64 of a chunk that was made from ``state_S``."""
        last = np.asarray(commanded_N, np.float64)
        found = []
        for native_N in native_HN:
            last = self._control.to_command(native_N, state_S, last)
            found.append(last)
        return np.stack(found)

    def to_prefix(
        self, prefix: ActionPrefix, state_S: np.ndarray, commanded_N: np.ndarray
    ) -> ActionPrefix:
        """A prefix of commands in the controller's numbers; steps beyond its limit are clipped."""
        last = np.asarray(commanded_N, np.float64)
        found = []
        for command_N in prefix.actions:
            native = self._control.to_native(command_N, state_S, last, limit="clip")
            found.append(native)
            last = self._control.to_command(native, state_S, last)
        return replace(prefix, actions=np.stack(found))


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
