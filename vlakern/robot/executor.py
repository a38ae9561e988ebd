"""A native thread that turns chunks of actions into one checked command per tick.

It is not a safety-rated function: the robot's own emergency stop stays in charge. Positions are in
the robot's own units, per dimension; times in seconds, or nanoseconds of ``time.monotonic_ns()``.

Dimension letters: H steps of a chunk, J dimensions of a command.
"""

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import numpy as np

from vlakern.errors import InputError
from vlakern.ops import _native

__all__ = [
    "Command",
    "Counters",
    "Executor",
    "ExecutorConfig",
    "Limits",
    "SharedCommands",
    "Submitted",
    "Tick",
]

State = Literal["waiting", "running", "starved", "stopping", "holding", "fault"]
Verdict = Literal["accepted", "not_finite", "out_of_order", "expired", "fault", "full"]
# For the next command, until the thread that hands them over looks whether it is to end [s].
PATIENCE = 0.1
# For a send that does not return, at the end [s].
FAREWELL = 5.0


@dataclass(frozen=True)
class Limits:
    """What no command ever leaves, one value per dimension; see ``csrc/executor/limiter.h``.

    Attributes:
        position_min, position_max: of commands.
        velocity: of differences of commands [unit/s].
        acceleration: the same of velocities [unit/s²], None where the robot declares none.
        jerk: the same of accelerations [unit/s³]; needs an acceleration.
    """

    position_min: Sequence[float]
    position_max: Sequence[float]
    velocity: Sequence[float]
    acceleration: Sequence[float] | None = None
    jerk: Sequence[float] | None = None


@dataclass(frozen=True)
class ExecutorConfig:
    """How the thread runs.

    Attributes:
        policy_rate: of the actions in a chunk [Hz].
        tick_rate: of commands, 50 to 1,000 [Hz].
        most_steps: of a chunk.
        stop_after: time without an unexpired action until the robot is braked [s].
        fault_after: the same until only :meth:`Executor.reset` goes on [s].
        held: dimensions that keep an action until the next one instead of moving towards it.
        priority: of SCHED_FIFO, 1 to 99; 0 asks for none.
        cpu: the core that the thread stays on, None for any.
        lock_memory: keep the process's memory resident.
    """

    policy_rate: float
    tick_rate: float = 200.0
    most_steps: int = 64
    stop_after: float = 0.1
    fault_after: float = 0.5
    held: tuple[int, ...] = ()
    priority: int = 0
    cpu: int | None = None
    lock_memory: bool = False


@dataclass(frozen=True)
class Command:
    """What one tick sends.

    Attributes:
        tick: from 1 on.
        time_ns: of ``time.monotonic_ns()``, when it was due.
        chunk: number of the chunk, 0 before the first.
        state: of the executor.
        position_J, velocity_J: of the command; the second [unit/s].
    """

    tick: int
    time_ns: int
    chunk: int
    state: State
    position_J: np.ndarray
    velocity_J: np.ndarray


@dataclass(frozen=True)
class Submitted:
    """What became of a chunk, and its number if it was accepted."""

    verdict: Verdict
    chunk: int

    @property
    def accepted(self) -> bool:
        return self.verdict == "accepted"


@dataclass(frozen=True)
class Tick:
    """One line of the trace; ``late_ns`` after it was due."""

    tick: int
    chunk: int
    time_ns: int
    late_ns: int
    state: State


@dataclass(frozen=True)
class Counters:
    """What the thread has counted since it was made.

    Attributes:
        ticks: commands that were sent.
        missed: ticks that were skipped because the thread came late, never made up for.
        late: lateness [s] at ``p50``, ``p99``, ``p99.9``, ``p99.99`` and ``max``.
        limited: ticks in which a limit kept the command from its target.
        chunks: chunks that were begun.
        replaced, expired_late: accepted chunks that no tick executed, because a newer one, a reset
            or the end came, or their time was over.
        starved: ticks without an unexpired action.
        stops, faults, sink_failures: what the watchdog and the sink did.
        refused: commands, or chunks that waited, which the last look before the sink found spoilt:
            not finite or outside a limit. They were not sent; the command of a braking robot was.
        submitted: chunks by verdict.
    """

    ticks: int
    missed: int
    late: dict[str, float]
    limited: int
    chunks: int
    replaced: int
    expired_late: int
    starved: int
    stops: int
    faults: int
    sink_failures: int
    refused: int = 0
    submitted: dict[str, int] = field(default_factory=dict)


class Executor:
    """Executes chunks; use it as a context, or :meth:`start` and :meth:`stop` it.

    A program that ends without either brakes its robot first.

    Args:
        limits: of every command.
        config: rates and times.
        send: gets every :class:`Command`, on a thread of its own: the native thread waits for no
            Python. One that falls 256 commands behind, or raises, latches a fault.
        shared: name of a shared-memory segment that holds the newest command, in place of ``send``;
            see :class:`SharedCommands` and ``csrc/executor/shared_command.h``.

    Attributes:
        error: what ``send`` raised.

    Raises:
        InputError: limits or rates that contradict themselves, no sink or two of them.
        Unsupported: the native module is not built, or the shared memory cannot be used.
    """

    def __init__(
        self,
        limits: Limits,
        config: ExecutorConfig,
        send: Callable[[Command], None] | None = None,
        *,
        shared: str | None = None,
    ) -> None:
        if (send is None) == (shared is None):
            raise InputError("an executor needs one sink: either send or shared")
        if shared == "":
            raise InputError("shared is '', expected the name of a shared-memory segment")
        self.limits, self.config = limits, config
        self._low_J = np.array(_numbers(limits.position_min))
        self._high_J = np.array(_numbers(limits.position_max))
        self.error: BaseException | None = None
        self._send = send
        self._hand: threading.Thread | None = None
        self._at_exit: weakref.finalize | None = None
        self._ending = threading.Event()
        self._native: Any = _native.cpu_module().Executor(
            [_numbers(getattr(limits, name)) for name in Limits.__dataclass_fields__],
            {
                "tick_rate": config.tick_rate,
                "policy_rate": config.policy_rate,
                "most_steps": config.most_steps,
                "stop_after": config.stop_after,
                "fault_after": config.fault_after,
            },
            list(config.held),
            (config.priority, -1 if config.cpu is None else config.cpu, config.lock_memory),
            shared or "",
        )

    def start(self, position_J: Sequence[float] | np.ndarray) -> None:
        """Starts ticking; the robot rests at ``position_J``.

        Raises:
            InputError: it is outside the limits, or the executor runs already, or ``send`` hangs.
        """
        if self._hand is not None and not self._native.runs():
            raise InputError("send of the last run has not returned; make another executor")
        self._native.start(_numbers(position_J))
        if self._send is not None:
            self.error = None
            self._ending.clear()
            self._hand = threading.Thread(target=self._hand_over, name="vlakern-send", daemon=True)
            self._hand.start()
        self._at_exit = weakref.finalize(self, _end, self._native, self._ending, self._hand)

    def stop(self, patience: float = FAREWELL) -> bool:
        """Brakes the robot, sends the last commands and ends.

        Args:
            patience: for ``send`` once the robot's commands are at rest [s].

        Returns:
            Whether ``send`` took the last command. One that hangs is left behind with the commands
            it did not take, ``error`` says so, and the executor cannot be started again.
        """
        hand = self._hand
        if hand is threading.current_thread():
            raise InputError("send stops its own executor, which would wait for it; raise instead")
        if self._at_exit is not None:
            self._at_exit.detach()
        if _end(self._native, self._ending, hand, patience):
            hung = f"send has not returned within {patience:g} s of the stop; its thread is left"
            self.error = self.error or TimeoutError(f"{hung} behind, and the last commands with it")
            return False
        self._hand = None
        return True

    def __enter__(self) -> "Executor":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def submit(self, actions_HJ: np.ndarray, observed_ns: int | None = None) -> Submitted:
        """Hands a chunk in, which from its observation's time on replaces the former one.

        From rest nothing of it is skipped. A chunk that is refused leaves the former one running.

        Args:
            actions_HJ: absolute commands; the first is for the time of the observation.
            observed_ns: that time, of ``time.monotonic_ns()``; now by default.

        Raises:
            InputError: its shape is wrong, or the time is no whole number.
        """
        actions = np.ascontiguousarray(actions_HJ, np.float64)
        if actions.ndim != 2:
            raise InputError(f"actions are {list(actions.shape)}, expected [steps, dimensions]")
        observed = time.monotonic_ns() if observed_ns is None else observed_ns
        if not isinstance(observed, (int, np.integer)):
            raise InputError(f"observed_ns is {observed!r}, expected time.monotonic_ns(), whole")
        return Submitted(*self._native.submit(actions.ctypes.data, *actions.shape, int(observed)))

    def reset(self) -> None:
        """Goes on after a fault, with the next chunk.

        Raises:
            InputError: ``send`` failed in this run, and nothing would be sent.
        """
        if self.error is not None and self._native.runs():
            raise InputError(
                f"send failed ({self.error!r}), so that nothing is sent any more; stop the executor"
                " and start it again"
            )
        self._native.reset()

    def halt(self) -> None:
        """Brakes now, and latches a fault."""
        self._native.halt()

    @property
    def state(self) -> State:
        return self._native.state()

    @property
    def statements(self) -> list[str]:
        """What the operating system granted and refused at the start."""
        return self._native.statements()

    def counters(self) -> Counters:
        """A copy; the thread goes on."""
        found = self._native.counters()
        late = {name[5:]: v for name, v in found.items() if name.startswith("late_")}
        by_verdict = {n[10:]: int(v) for n, v in found.items() if n.startswith("submitted_")}
        names = set(Counters.__dataclass_fields__) - {"late", "submitted"}
        return Counters(late=late, submitted=by_verdict, **{n: int(found[n]) for n in names})

    def trace(self, most: int = 4096) -> list[Tick]:
        """The last ticks, oldest first; at most 4,096."""
        return [Tick(*entry) for entry in self._native.trace(most)]

    def _hand_over(self) -> None:
        assert self._send is not None
        while True:
            command = self._native.next_command(PATIENCE)
            if command is None:
                if self._ending.is_set():
                    return
                continue
            if self.error is None:  # whoever could not send, or hung, is not asked again
                with _Halting(self):
                    self._send(self._checked(_command(command)))

    def _checked(self, command: Command) -> Command:
        """What the native thread has checked, once more behind all that hands it over."""
        position_J = command.position_J
        inside = (position_J >= self._low_J) & (position_J <= self._high_J)
        if not (inside.all() and np.isfinite(command.velocity_J).all()):
            raise InputError(
                f"command {command.tick} is {position_J.tolist()}, which is not finite or outside"
                " its limits: memory is damaged; it was not sent"
            )
        return command

    def _failed(self, error: BaseException) -> None:
        self.error = error
        self.halt()


class _Halting:
    """Whatever goes wrong inside the block stops the robot, and is kept."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None:
            self._executor._failed(error)
        return error is not None


class SharedCommands:
    """Reads the newest command of an executor in another process.

    Raises:
        InputError: the name is no file name.
        Unsupported: there is no such segment, or it has another layout.
    """

    def __init__(self, name: str) -> None:
        self._native: Any = _native.cpu_module().SharedCommands(name)

    def newest(self) -> Command | None:
        """The newest command, None before the first."""
        found = self._native.newest()
        return None if found is None else _command(found)


def _end(
    native: Any, ending: threading.Event, hand: threading.Thread | None, patience: float = FAREWELL
) -> bool:
    """Brakes, and sends the last commands; whether ``hand`` hangs."""
    native.stop()
    ending.set()
    if hand is None:
        return False
    hand.join(patience)
    return hand.is_alive()


def _numbers(values: Sequence[float] | np.ndarray | None) -> list[float]:
    return [] if values is None else [float(value) for value in np.asarray(values).ravel()]


def _command(found: tuple[Any, ...]) -> Command:
    tick, time_ns, chunk, state, position, velocity = found
    return Command(tick, time_ns, chunk, state, np.array(position), np.array(velocity))
