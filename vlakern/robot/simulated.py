"""A simulator as a robot in real time: it goes on while inference runs.

Dimension letters: J dimensions of a command.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

import numpy as np

from vlakern.robot.executor import Command
from vlakern.robot.ports import Seen
from vlakern.space.controller import NativeControl
from vlakern.types import Observation

__all__ = ["RealtimeSimulator", "World"]


class Outcome(Protocol):
    @property
    def success(self) -> bool: ...


class World(Protocol):
    """A simulator, as :class:`vlakern.sim.metaworld.MetaWorldEnv` is one."""

    def reset(self, seed: int) -> None: ...
    def observe(self) -> Observation: ...
    def state(self) -> np.ndarray: ...
    def step(self, action: np.ndarray) -> Outcome: ...
    def close(self) -> None: ...


class RealtimeSimulator:
    """One episode: a thread owns the simulator, whose graphics belong to one thread.

    From the first command on it makes ``rate`` control steps a second, each towards the newest
    command, and looks after each. Where the machine is too slow for that the world slows down,
    which :attr:`slow` counts; it never makes up for it.

    Attributes:
        steps, slow: control steps, and those of them that began a period or more too late.
        success: the task is solved; the world stands from then on.
        error: what the simulator raised; ``observe`` raises it again.
    """

    def __init__(
        self,
        make: Callable[[], World],
        control: NativeControl,
        seed: int,
        rate: float,
        max_steps: int,
        rest: np.ndarray,
    ) -> None:
        """Args: rest: numbers of a command ``[J]`` before the first; its pose is the measured one.

        Raises:
            VlakernError: whatever the simulator says at its start.
        """
        self._make, self._control, self._seed = make, control, seed
        self._period_ns, self._max_steps = round(1e9 / rate), max_steps
        self._rest = rest
        self.steps, self.slow, self.success = 0, 0, False
        self.error: BaseException | None = None
        self._newest: Command | None = None
        self._seen: Seen | None = None
        self._closing, self._there = threading.Event(), threading.Condition()
        self._thread = threading.Thread(target=self._guarded, name="vlakern-world", daemon=True)
        self._thread.start()
        with self._there:
            self._there.wait_for(lambda: self._seen is not None or self.error is not None)
        if self.error is not None:
            raise self.error

    @property
    def over(self) -> bool:
        """Solved, out of steps, or broken."""
        return self.success or self.steps >= self._max_steps or self.error is not None

    def observe(self) -> Seen | None:
        """The newest look, None if it was given before; waits for no picture."""
        if self.error is not None:
            raise self.error
        with self._there:
            seen, self._seen = self._seen, None
            return seen

    def position(self) -> np.ndarray:
        return self._rest.copy()

    def send(self, command: Command) -> None:
        self._newest = command

    def close(self) -> None:
        """Ends the thread, which closes the simulator."""
        self._closing.set()
        self._thread.join(10.0)

    def _guarded(self) -> None:
        with _Kept(self):
            self._run()

    def _failed(self, error: BaseException) -> None:
        self.error = error
        with self._there:
            self._there.notify_all()

    def _run(self) -> None:
        world = self._make()
        try:
            world.reset(self._seed)
            last = self._rest = self._command_at(world.state())
            self._look(world)
            due = time.monotonic_ns()
            while not self._closing.is_set():
                due = max(due + self._period_ns, time.monotonic_ns() - self._period_ns)
                self._closing.wait(max(0, due - time.monotonic_ns()) * 1e-9)
                if self._newest is not None and not self.over:
                    late = time.monotonic_ns() - due >= self._period_ns
                    last = self._step(world, self._newest.position_J, last)
                    self.slow += late
                self._look(world)
        finally:
            world.close()

    def _step(self, world: World, goal_J: np.ndarray, last_J: np.ndarray) -> np.ndarray:
        """Towards ``goal_J``; what that commanded."""
        state = world.state()
        native = self._control.to_native(goal_J, state, last_J, limit="clip")
        self.success = bool(world.step(native).success)
        self.steps += 1
        return self._control.to_command(native, state, last_J)

    def _look(self, world: World) -> None:
        now = time.monotonic_ns()
        seen = Seen(world.observe(), now)
        with self._there:
            self._seen = seen
            self._there.notify_all()

    def _command_at(self, state: np.ndarray) -> np.ndarray:
        """To stay at the measured pose."""
        still = np.zeros(self._control.robot.action_width, np.float32)
        here = self._control.to_command(still, state)
        rest = self._rest.copy()
        for number in self._control.robot.action:
            if number.slot.endswith(("_position", "_rotation")):
                rest[slice(*number.native)] = here[slice(*number.native)]
        return rest


class _Kept:
    """Whatever goes wrong inside the block is for the thread that asks for looks."""

    def __init__(self, world: RealtimeSimulator) -> None:
        self._world = world

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None:
            self._world._failed(error)
        return error is not None
