"""A simulator as a robot in real time: it goes on while inference runs.

Dimension letters: J dimensions of a command.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

import numpy as np

from vlakern.errors import ConfigError
from vlakern.robot.executor import Command, Limits
from vlakern.robot.ports import Seen
from vlakern.space.controller import NativeControl
from vlakern.types import Observation

__all__ = ["RealtimeSimulator", "World"]

# Of an executor's ticks [Hz]: a number that is no pose may go from end to end in one of them.
MOST_TICKS = 1000.0


class Outcome(Protocol):
    @property
    def success(self) -> bool: ...


class World(Protocol):
    """A simulator, as :class:`vlakern.sim.metaworld.MetaWorldEnv` is one."""

    def reset(self, seed: int) -> None: ...
    def observe(self) -> Observation: ...
    def state(self) -> np.ndarray: ...
    def hand_range(self) -> tuple[np.ndarray, np.ndarray]: ...
    def step(self, action: np.ndarray) -> Outcome: ...
    def close(self) -> None: ...


class RealtimeSimulator:
    """One episode: a thread owns the simulator, whose graphics belong to one thread.

    From the first command on it makes ``rate`` control steps a second, each towards the newest
    command, and looks after each. Where the machine is too slow for that the world slows down,
    which :attr:`slow` counts; it never makes up for it.

    Attributes:
        limits: of its commands: the hand's range is the simulator's own, its speed one step of the
            controller's limit per control step.
        held: columns of a command that are no pose, such as a gripper's.
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
    ) -> None:
        """Args: seed: of the scene. rate: of control steps [Hz]. max_steps: that end the episode.

        Raises:
            ConfigError: a rate that is not above 0, or no limit of the controller's steps.
            VlakernError: whatever the simulator says at its start.
        """
        if not 0 < rate < np.inf:
            raise ConfigError(f"rate is {rate:g}, expected control steps a second above 0")
        if control.controller.limit is None:
            raise ConfigError(
                f"{control.robot.name}: controller {control.controller.name} declares no limit, so"
                " no speed is known that it keeps up with; declare controller.limit"
            )
        self._make, self._control, self._seed = make, control, seed
        self._period_ns, self._max_steps = round(1e9 / rate), max_steps
        self._speed = control.controller.position_scale * control.controller.limit * rate  # [m/s]
        columns = np.arange(control.robot.action_width)
        self.held = tuple(int(i) for i in np.setdiff1d(columns, control.steered))
        self.steps, self.slow, self.success = 0, 0, False
        self.error: BaseException | None = None
        self.limits: Limits
        self._rest: np.ndarray
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
        """The newest look; waits a period for one, None if none came."""
        with self._there:
            self._there.wait_for(
                lambda: self._seen is not None or self.error is not None, self._period_ns * 1e-9
            )
            if self.error is not None:
                raise self.error
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
            last = self._rest = self._rest_at(world.state())
            self.limits = self._limits_in(*world.hand_range())
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

    def _rest_at(self, state: np.ndarray) -> np.ndarray:
        """The command to stay at the measured pose, with open grippers."""
        still = np.zeros(self._control.robot.action_width, np.float32)
        for field in self._control.robot.action:
            if field.open is not None:
                still[slice(*field.native)] = field.open
        return self._control.to_command(still, state)

    def _limits_in(self, low: np.ndarray, high: np.ndarray) -> Limits:
        robot = self._control.robot
        most, speed = np.full((2, robot.action_width), np.inf), np.full(robot.action_width, np.inf)
        for field in robot.action:
            at = slice(*field.native)
            if field.closed is not None and field.open is not None:
                most[:, at] = np.sort([field.closed, field.open])[:, None]
                speed[at] = abs(field.open - field.closed) * MOST_TICKS
            elif field.slot.endswith("_eef_position"):
                most[:, at] = low, high
                speed[at] = self._speed
        return Limits(most[0].tolist(), most[1].tolist(), speed.tolist())


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
