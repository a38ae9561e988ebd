"""The control loop's own numbers: lateness beside a busy interpreter, a stall, the way to a server.

The native thread and a Python thread keep the same rate in the same run, first alone, then beside
threads that hold the interpreter and an inference that runs without a pause.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlakern.errors import InputError
from vlakern.infer import load
from vlakern.robot import Executor, ExecutorConfig, Limits
from vlakern.serve.overhead import overhead
from vlakern.types import Observation

__all__ = ["LoopBench", "Thread", "bench_loop"]

POLICY_RATE = 20.0  # Hz
STEPS, JOINTS = 64, 6
PRIORITY = 50  # of SCHED_FIFO, where the system permits it
STALL = 0.2  # s
SHARES = {"p50": 50, "p99": 99, "p99.9": 99.9, "p99.99": 99.99, "max": 100}
LIMITS = Limits(
    position_min=[-3.0] * JOINTS,  # [rad]
    position_max=[3.0] * JOINTS,
    velocity=[2.0] * JOINTS,  # [rad/s]
    acceleration=[20.0] * JOINTS,  # [rad/s²]
)


@dataclass(frozen=True)
class Thread:
    """One thread's run: ticks it kept, ticks it missed, lateness [ms] by share of the ticks."""

    ticks: int
    missed: int
    late_ms: dict[str, float]


@dataclass(frozen=True)
class LoopBench:
    """What was measured.

    Attributes:
        seconds, rate: of each run [s], of the ticks [Hz]; busy: Python threads that never rest.
        native_idle, native_busy, python_idle, python_busy: the two threads, alone and beside them.
        calls: inferences that ran in the busy time.
        stall_missed, stall_bursts: ticks skipped after a stall of 200 ms of the native thread, and
            ticks that came less than a tenth of a period after another.
        statements: what the operating system granted the native thread.
        overhead: way -> percentiles [ms] of a served call over the same call in this process.
    """

    seconds: float
    rate: float
    busy: int
    native_idle: Thread
    native_busy: Thread
    python_idle: Thread
    python_busy: Thread
    calls: int
    stall_missed: int
    stall_bursts: int
    statements: tuple[str, ...]
    overhead: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def growth_ms(self) -> float:
        """How much the native thread's p99.9 grows beside the load [ms]."""
        return self.native_busy.late_ms["p99.9"] - self.native_idle.late_ms["p99.9"]


def bench_loop(
    policy: str = "metaworld-small",
    seconds: float = 20.0,
    rate: float = 200.0,
    busy: int = 3,
    say: Callable[[str], None] = lambda what: None,
) -> LoopBench:
    """Measures everything, in about ``2 * seconds`` and ten more.

    Args:
        policy: whose inference runs.
        seconds: of each of the two runs [s].
        rate: of the ticks, 50 to 1,000 [Hz].
        busy: Python threads that hold the interpreter.
        say: told what begins.

    Raises:
        InputError: a length or a rate that cannot be, or fewer than no threads.
    """
    if not 0.5 <= seconds <= 3600.0 or busy < 0:
        raise InputError(
            f"seconds is {seconds:g} and busy {busy}, expected 0.5 to 3600 and at least 0"
        )
    known = load(policy)
    say("alone")
    native_idle, python_idle, _ = _run(seconds, rate, None)
    say("beside busy threads and an inference")
    inference = _Inference(known)
    with _spinning(busy), inference:
        native_busy, python_busy, statements = _run(seconds, rate, inference)
    say("a stall")
    missed, bursts = _stall(rate)
    say("a server")
    return LoopBench(
        seconds,
        rate,
        busy,
        native_idle,
        native_busy,
        python_idle,
        python_busy,
        inference.calls,
        missed,
        bursts,
        statements,
        overhead(calls=300),
    )


class _Inference:
    """A policy that is called without a pause, in a thread of its own."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="vlakern-infer")
        self.calls = 0

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _work(self) -> None:
        side = self._policy.image_size
        images = {view: np.zeros((side, side, 3), np.uint8) for view in self._policy.views}
        state = np.zeros(self._policy.robot.state_width, np.float32)
        seen = Observation(images, state, "go on")
        while not self._ending.is_set():
            self._policy.act(seen, seed=self.calls)
            self.calls += 1


@contextmanager
def _spinning(count: int) -> Iterator[None]:
    """Threads that only count, and so hold the interpreter whenever they may."""
    ending = threading.Event()

    def spin() -> None:
        number = 0
        while not ending.is_set():
            for _ in range(10_000):
                number += 1

    threads = [threading.Thread(target=spin, name="vlakern-busy") for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def _executor(rate: float, name: str) -> Executor:
    config = ExecutorConfig(
        policy_rate=POLICY_RATE, tick_rate=rate, most_steps=STEPS, priority=PRIORITY
    )
    return Executor(LIMITS, config, shared=f"vlakern-bench-{os.getpid()}-{name}")


def _run(
    seconds: float, rate: float, inference: _Inference | None
) -> tuple[Thread, Thread, tuple[str, ...]]:
    """The native thread and a Python thread side by side."""
    late_s: list[float] = []
    metronome = threading.Thread(target=_keep_time, args=(seconds, rate, late_s))
    wave = 0.2 * np.sin(np.linspace(0, 2 * np.pi, STEPS))[:, None].repeat(JOINTS, 1)
    with _executor(rate, "busy" if inference else "idle") as executor:
        executor.start(np.zeros(JOINTS))
        metronome.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            executor.submit(wave)
            time.sleep(min(0.5, max(end - time.monotonic(), 0.0)))
        metronome.join()
        counters = executor.counters()
        statements = tuple(executor.statements)
    native = Thread(
        counters.ticks,
        counters.missed,
        {name: counters.late[name] * 1e3 for name in SHARES},
    )
    late_ms = np.array(late_s) * 1e3
    shares = {name: float(np.percentile(late_ms, share)) for name, share in SHARES.items()}
    due = round(seconds * rate)
    return native, Thread(len(late_s), max(due - len(late_s), 0), shares), statements


def _keep_time(seconds: float, rate: float, late_s: list[float]) -> None:
    """A loop as Python programs have it: sleep until the next tick, skip what is over."""
    period, begin = 1.0 / rate, time.monotonic()
    tick = 1
    while tick <= seconds * rate:
        time.sleep(max(begin + tick * period - time.monotonic(), 0.0))
        over = time.monotonic() - begin - tick * period
        late_s.append(over)
        tick += 1 + int(max(over, 0.0) / period)


def _stall(rate: float) -> tuple[int, int]:
    """Ticks that a stall of the native thread costs, and ticks that come in a burst after it."""
    with _executor(rate, "stall") as executor:
        executor.start(np.zeros(JOINTS))
        time.sleep(0.3)
        executor._native.stall(STALL)
        time.sleep(STALL + 0.5)
        trace, missed = executor.trace(), executor.counters().missed
    period = round(
        1e9 / rate
    )  # ns; of a late tick, the periods that it skipped are in its due time
    sent = np.array([tick.time_ns + tick.late_ns % period for tick in trace]) / 1e9
    return missed, int(np.count_nonzero(np.diff(sent) < 0.1 / rate))
