"""A simulator that takes absolute commands: what policies in one of the four frames give."""

from typing import Protocol

import numpy as np

from vlakern.sim.rollout import Environment, Outcome
from vlakern.space.controller import NativeControl
from vlakern.types import Observation

__all__ = ["CommandedEnv", "MeasuredEnvironment"]


class MeasuredEnvironment(Environment, Protocol):
    """A simulator that can tell its proprioception without rendering."""

    def state(self) -> np.ndarray: ...


class CommandedEnv:
    """Turns each absolute command into the numbers that the simulator's own controller takes.

    What the controller cannot reach in one step is clipped, as simulators clip. Where steps start
    from what was commanded, they do so within a chunk; an observation begins the next one, whose
    commands are relative to the hand as measured then, as in training
    (:func:`vlakern.data.collate.chunks_at`).
    """

    def __init__(self, env: MeasuredEnvironment, control: NativeControl) -> None:
        self._env, self._control = env, control
        self._last: np.ndarray | None = None

    def reset(self, seed: int) -> None:
        """Starts an episode."""
        self._last = None
        self._env.reset(seed)

    def observe(self) -> Observation:
        """What the robot sees now, at the beginning of a chunk."""
        self._last = None
        return self._env.observe()

    def render(self, view: str) -> np.ndarray:
        """The simulator's picture."""
        return self._env.render(view)

    def step(self, action: np.ndarray) -> Outcome:
        """Executes one command ``[N]``.

        Raises:
            InputError: numbers that are no command, naming the slot.
        """
        state = self._env.state()
        native = self._control.to_native(action, state, self._last, limit="clip")
        self._last = self._control.to_command(native, state, self._last)
        return self._env.step(native)

    def close(self) -> None:
        """Closes the simulator."""
        self._env.close()
