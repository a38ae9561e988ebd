"""What a loop asks of a robot and a policy: small protocols, the newest look, a simulated arm.

All times are nanoseconds of ``time.monotonic_ns()``: a wall clock jumps.

Dimension letters: J dimensions of a command.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from vlakern.errors import ConfigError
from vlakern.robot.executor import Command
from vlakern.types import ActionChunk, ActionPrefix, Observation

__all__ = [
    "Arm",
    "Camera",
    "ChunkPolicy",
    "Newest",
    "Rig",
    "Robot",
    "Seen",
    "SimulatedArm",
    "Trouble",
]


@dataclass(frozen=True)
class Seen:
    """An observation and the time at which its oldest part was taken."""

    observation: Observation
    time_ns: int


@runtime_checkable
class Robot(Protocol):
    """What the loop drives. ``observe`` and ``send`` are called by threads of their own each."""

    def observe(self) -> Seen | None:
        """The newest look; None where nothing is new. It may wait for a camera."""
        ...

    def position(self) -> np.ndarray:
        """Where the robot rests before the loop starts ``[J]``, in the units of its commands."""
        ...

    def send(self, command: Command) -> None:
        """One checked command per tick. What it raises stops the loop and latches a fault."""
        ...


class ChunkPolicy(Protocol):
    """What the loop asks; :class:`vlakern.Policy` is one.

    Chunks are absolute commands, but of one whose ``frame`` is ``native`` and whose ``robot`` has a
    controller: see :class:`vlakern.robot.native.NativeChunks`.
    """

    def act(
        self, observation: Observation, *, prefix: ActionPrefix | None = None
    ) -> ActionChunk: ...


class Camera(Protocol):
    """One view."""

    def read(self) -> tuple[np.ndarray, int]:
        """The newest image, uint8 ``[H, W, 3]`` RGB, and when it was taken."""
        ...


class Arm(Protocol):
    """Something with joints."""

    def state(self) -> tuple[np.ndarray, int]:
        """Proprioception ``[S]`` and when it was read."""
        ...

    def position(self) -> np.ndarray: ...

    def send(self, command: Command) -> None: ...


class Rig:
    """A :class:`Robot` of an arm and cameras; an observation is as old as its oldest part."""

    def __init__(self, arm: Arm, cameras: Mapping[str, Camera], instruction: str) -> None:
        self.arm, self.cameras, self.instruction = arm, dict(cameras), instruction

    def observe(self) -> Seen:
        shots = {view: camera.read() for view, camera in self.cameras.items()}
        state, time_ns = self.arm.state()
        images = {view: image for view, (image, _) in shots.items()}
        oldest = min([time_ns, *(taken for _, taken in shots.values())])
        return Seen(Observation(images, state, self.instruction), oldest)

    def position(self) -> np.ndarray:
        return self.arm.position()

    def send(self, command: Command) -> None:
        self.arm.send(command)


class Newest:
    """Room for one observation: a newer one takes the place of one that nobody took.

    Attributes:
        dropped: how many were not used: ``out_of_order`` (not newer than one before), ``future``
            (its time has not come), ``stale`` (too old when it was to be used), ``replaced``.
    """

    def __init__(self, most_age: float, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Args: most_age: of an observation that is given out [s]."""
        self._most_ns, self._clock = round(most_age * 1e9), clock
        self._there = threading.Condition()
        self._seen: Seen | None = None
        self._latest: int | None = None
        self.dropped = {"out_of_order": 0, "future": 0, "stale": 0, "replaced": 0}

    def put(self, seen: Seen) -> None:
        """Never waits."""
        with self._there:
            if seen.time_ns > self._clock():  # and later ones are not compared with it
                self.dropped["future"] += 1
            elif self._latest is not None and seen.time_ns <= self._latest:
                self.dropped["out_of_order"] += 1
            else:
                self.dropped["replaced"] += self._seen is not None
                self._seen, self._latest = seen, seen.time_ns
                self._there.notify_all()

    def take(self, after_ns: int = 0, patience: float = 0.1) -> Seen | None:
        """The newest one of ``after_ns`` or later that is fresh; None if none came [s]."""
        with self._there:
            self._there.wait_for(lambda: self._ready(after_ns), patience)
            if not self._ready(after_ns):
                return None
            seen, self._seen = self._seen, None
            return seen

    def _ready(self, after_ns: int) -> bool:
        if self._seen is None or self._seen.time_ns < after_ns:
            return False
        if self._clock() - self._seen.time_ns > self._most_ns:
            self.dropped["stale"] += 1
            self._seen = None
            return False
        return True


@dataclass(frozen=True)
class Trouble:
    """What goes wrong between a simulated arm and the loop, at random with a seed.

    Attributes:
        latency, jitter: of observations: a mean and a standard deviation [s].
        loss, duplicates, reordering: shares of observations; one that is overtaken comes 30 ms
            later.
        observe_fault, send_fault: shares of calls that raise ``ConnectionError``.
    """

    latency: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    duplicates: float = 0.0
    reordering: float = 0.0
    observe_fault: float = 0.0
    send_fault: float = 0.0

    def __post_init__(self) -> None:
        shares = (self.loss, self.duplicates, self.reordering, self.observe_fault, self.send_fault)
        times = (self.latency, self.jitter)
        if not all(0 <= one < np.inf for one in times) or not all(0 <= one <= 1 for one in shares):
            raise ConfigError(f"trouble: times of 0 or more and shares of 0 to 1, found {self}")


@dataclass
class SimulatedArm:
    """Joints that follow their commands, with bad luck on the way of its observations.

    Each joint is critically damped, q" = ω²(command - q) - 2ω·q'; ``frequency`` 0 follows at once.

    Attributes:
        start: where the joints rest.
        views: names of its cameras, which see nothing but grey.
        instruction: of its observations.
        frequency: ω / 2π [Hz].
        trouble, seed: what goes wrong.
        sent: every command, in order.
    """

    start: tuple[float, ...]
    views: tuple[str, ...] = ("front",)
    image_size: int = 32
    instruction: str = "wave"
    frequency: float = 0.0
    trouble: Trouble = field(default_factory=Trouble)
    seed: int = 0
    sent: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._q, self._v = np.array(self.start, np.float64), np.zeros(len(self.start))
        self._chance, self._wire = np.random.default_rng(self.seed), _Wire(self.trouble, self.seed)
        grey = np.full((self.image_size, self.image_size, 3), 128, np.uint8)
        self._images = dict.fromkeys(self.views, grey)

    def observe(self) -> Seen | None:
        self._wire.fail(self.trouble.observe_fault, "the camera is gone")
        now = time.monotonic_ns()
        with self._lock:
            state = self._q.astype(np.float32)
        self._wire.push(Seen(Observation(self._images, state, self.instruction), now), now)
        return self._wire.pop(now)

    def position(self) -> np.ndarray:
        with self._lock:
            return self._q.copy()

    def send(self, command: Command) -> None:
        if self._chance.random() < self.trouble.send_fault:
            raise ConnectionError("the arm does not answer")
        with self._lock:
            before = self.sent[-1].time_ns if self.sent else command.time_ns
            self.sent.append(command)
            self._follow(command.position_J, (command.time_ns - before) * 1e-9)

    def _follow(self, goal_J: np.ndarray, seconds: float) -> None:
        """The exact solution over ``seconds`` with a constant goal."""
        if self.frequency == 0:
            self._q = goal_J.copy()
            return
        omega, off = 2 * np.pi * self.frequency, self._q - goal_J
        slope, decay = self._v + omega * off, np.exp(-2 * np.pi * self.frequency * seconds)
        self._q = goal_J + (off + slope * seconds) * decay
        self._v = (self._v - omega * slope * seconds) * decay


class _Wire:
    """Observations on their way, seeded."""

    def __init__(self, trouble: Trouble, seed: int) -> None:
        self._trouble, self._rng = trouble, np.random.default_rng([seed, 1])
        self._flying: list[tuple[int, int, Seen]] = []
        self._numbers = itertools.count()

    def fail(self, share: float, words: str) -> None:
        if self._rng.random() < share:
            raise ConnectionError(words)

    def push(self, seen: Seen, now_ns: int) -> None:
        trouble = self._trouble
        lost, twice, late = self._rng.random(3) < (
            trouble.loss,
            trouble.duplicates,
            trouble.reordering,
        )
        if lost:
            return
        took = max(0.0, self._rng.normal(trouble.latency, trouble.jitter)) + 0.03 * late
        for copy in range(1 + int(twice)):
            due = now_ns + round((took + 0.02 * copy) * 1e9)
            heapq.heappush(self._flying, (due, next(self._numbers), seen))

    def pop(self, now_ns: int) -> Seen | None:
        """What came first of the last two that have come, as of a driver with room for two."""
        while sum(due <= now_ns for due, _, _ in self._flying) > 2:
            heapq.heappop(self._flying)
        if not self._flying or self._flying[0][0] > now_ns:
            return None
        return heapq.heappop(self._flying)[2]
