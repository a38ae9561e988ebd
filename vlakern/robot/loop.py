"""The control loop: looks at a robot, asks a policy for chunks, and lets an executor send commands.

It is not a safety-rated function: the robot's own emergency stop stays in charge. Whatever the
policy does, errors, hangs and numbers that are none included, ends in the executor's stop.

Dimension letters: H steps of a chunk, J dimensions of a command.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

import numpy as np

from vlakern.errors import InputError, VlakernError
from vlakern.robot.checks import check_chunk, check_parts, check_seen
from vlakern.robot.chunks import Ensemble, Placed, prefix_at
from vlakern.robot.executor import Command, Executor, ExecutorConfig, Limits
from vlakern.robot.latency import Latency
from vlakern.robot.native import native_chunks
from vlakern.robot.ports import ChunkPolicy, Newest, Robot, Seen
from vlakern.robot.settings import Begun, Ended, LoopConfig, LoopReport, check_delay
from vlakern.types import ActionChunk, ActionPrefix

__all__ = ["Loop"]

MOVING = ("running", "starved")
# How often a thread that waits looks whether it is to end [s].
GLANCE = 0.02
# For a thread at the end, until it is left behind; threads are daemons [s].
FAREWELL = 1.0


class Loop:
    """One run of a policy on a robot.

    Attributes:
        latency: from an observation's time to its chunk's, at least one tick.
        begun: the last chunks that the executor began.
        newest: room for one observation, and what was dropped.

    Raises:
        ConfigError, InputError: settings that contradict each other.
        Unsupported: the native module is not built.
    """

    def __init__(
        self,
        robot: Robot,
        policy: ChunkPolicy,
        limits: Limits,
        executor: ExecutorConfig,
        config: LoopConfig,
    ) -> None:
        check_parts(robot, policy, config)
        self.robot, self.policy, self.config = robot, policy, config
        self._native = native_chunks(policy)
        self._rates, self._step_ns = executor, round(1e9 / executor.policy_rate)
        self._executor = Executor(limits, executor, self._send)
        self._width, self._warm_up = np.size(limits.position_min), config.warm_up
        if config.prefix and config.mode == "async":
            self._warm_up *= 2
        self.latency = Latency(config.window, self._warm_up)
        self.begun: deque[Begun] = deque(maxlen=4096)
        self.newest = Newest(config.most_age or 2.0 / executor.policy_rate)
        self._ensemble: Ensemble | None = None
        if config.ensemble is not None:
            self._ensemble = Ensemble(config.ensemble, executor.held)
        self._ending, self._ready, self._going = (threading.Event() for _ in range(3))
        self._ended: Ended | None = None
        self._error: BaseException | None = None
        self._errors = self._in_a_row = self._inferences = 0
        self._discarded: Counter[str] = Counter()
        # Of the thread that sends.
        self._there = threading.Condition()
        self._sent: tuple[int, bool, int] = (0, True, 0)  # chunk, from rest, first tick
        self._state_before = "waiting"
        self._commands: deque[tuple[int, np.ndarray]] = deque(maxlen=4096)
        # Of the thread that infers.
        self._running: Placed | None = None
        self._next_ns = 0
        self._threads: list[threading.Thread] = []

    def run(
        self, seconds: float | None = None, until: Callable[[], bool] = lambda: False
    ) -> LoopReport:
        """Warms the policy up, starts the executor, and drives until something ends it.

        Args:
            seconds: of commands; endless by default.
            until: asked 50 times a second; True ends the run.

        Raises:
            ConfigError: inference is too slow for the chunk, or the chunk does not fit.
            VlakernError: the policy has not answered; its own errors at the start pass as they are.
                The robot has not moved then.
            InputError: the loop ran before, the robot rests outside its limits, or robot or policy
                give what a loop cannot use.
        """
        if self._threads:
            raise InputError("this loop has run; make another one")
        if seconds is not None and not seconds > 0:
            raise InputError(f"seconds is {seconds}, expected more than 0, or None for no end")
        self._threads = [
            threading.Thread(
                target=self._guarded, args=(body,), name=f"vlakern-{name}", daemon=True
            )
            for name, body in (("observe", self._observe), ("infer", self._infer))
        ]
        begin = time.monotonic()
        try:
            for thread in self._threads:
                thread.start()
            if self._await_policy():
                self._executor.start(self.robot.position())
                begin = time.monotonic()
                self._going.set()
                self._watch(begin, seconds, until)
        finally:
            self._end_as("interrupted")
            left = self._part()
        return self._report(time.monotonic() - begin, left)

    def stop(self) -> None:
        """Ends the run from any thread: the robot is braked."""
        self._end_as("stopped")

    def _await_policy(self) -> bool:
        """Whether it is warm; False where the run was stopped."""
        end = time.monotonic() + self.config.patience
        while not self._ready.wait(GLANCE) and not self._ending.is_set():
            if time.monotonic() > end:
                raise VlakernError(
                    f"no chunk after {self.config.patience:g} s: the policy does not answer or the"
                    f" robot gives no fresh observation (dropped: {self.newest.dropped}; future"
                    " and stale ones if their clock is not time.monotonic_ns()); nothing was sent"
                )
        if self._error is not None and not self._ready.is_set():
            raise self._error
        return self._ready.is_set()

    def _watch(self, begin: float, seconds: float | None, until: Callable[[], bool]) -> None:
        while not self._ending.wait(GLANCE):
            now = time.monotonic()
            if self._executor.state == "fault":
                self._end_as("fault")
            elif seconds is not None and now - begin >= seconds:
                self._end_as("time")
            elif until():
                self._end_as("done")
            # Once something was executed the watchdog sees to it that nobody waits for ever.
            elif not self._sent[0] and now - begin > self.config.patience:
                self._end_as("no chunk")

    def _end_as(self, reason: Ended) -> None:
        if self._ended is None:
            self._ended = reason
        self._ending.set()

    def _part(self) -> tuple[str, ...]:
        """Brakes, and waits for the threads; names of those that hang."""
        braking = threading.Thread(target=self._executor.stop, name="vlakern-brake", daemon=True)
        braking.start()
        self._going.set()
        with self._there:
            self._there.notify_all()
        patience = {braking: max(FAREWELL, 5.0)}
        for thread in (braking, *self._threads):
            if thread.ident is not None:
                thread.join(patience.get(thread, FAREWELL))
        return tuple(t.name for t in (braking, *self._threads) if t.is_alive())

    def _report(self, seconds: float, left: tuple[str, ...]) -> LoopReport:
        error = self._executor.error or self._error
        return LoopReport(
            ended=self._ended or "stopped",
            seconds=seconds,
            inferences=self._inferences,
            delay_steps=self.latency.delay_steps(self._rates.policy_rate),
            latency=self.latency.summary(),
            dropped=dict(self.newest.dropped),
            discarded=dict(self._discarded),
            errors=self._errors,
            error=None if error is None else f"{type(error).__name__}: {error}",
            hung=left,
            executor=self._executor.counters(),
        )

    def _guarded(self, body: Callable[[], None]) -> None:
        attempt = _Attempt()
        with attempt:
            body()
        if attempt.error is not None:
            self._error = attempt.error
            self._executor.halt()
            self._end_as("fault")

    # The thread that looks.

    def _observe(self) -> None:
        period = 1.0 / (self.config.look_rate or 2.0 * self._rates.policy_rate)
        while not self._ending.is_set():
            begin = time.monotonic()
            seen = self.robot.observe()
            if seen is not None:
                self.newest.put(check_seen(seen))
            self._ending.wait(max(0.0, period - (time.monotonic() - begin)))

    # The thread of the executor's commands.

    def _send(self, command: Command) -> None:
        if command.chunk != self._sent[0]:
            with self._there:
                rested = self._state_before not in MOVING
                self._sent = (command.chunk, rested, command.time_ns)
                self._there.notify_all()
        self._state_before = command.state
        self._commands.append((command.time_ns, command.position_J))
        self.robot.send(command)

    def _commanded(self, time_ns: int) -> np.ndarray:
        """What was sent last before a time; where the robot rests, before anything was."""
        for sent_ns, position_J in reversed(self._commands.copy()):
            if sent_ns <= time_ns:
                return position_J
        return self.robot.position()

    # The thread that infers.

    def _infer(self) -> None:
        steps = self._probe()
        if steps is None:
            return
        check_delay(self.config, self._rates, self.latency, steps, self._native is not None)
        self._ready.set()
        self._going.wait()
        while not self._ending.is_set():
            moving = self._executor.state in MOVING
            seen = self.newest.take(self._next_ns if moving else 0, GLANCE)
            if seen is not None:
                self._step(seen, self._prefix(seen) if moving else None)

    def _probe(self) -> int | None:
        """Warms up and measures; H of the chunks, None if the run ended.

        Prefixes take time of their own, and a policy may refuse them: they are asked for here.
        """
        steps, answers = None, 0
        while answers < self._warm_up + self.config.probes:
            if self._ending.is_set():
                return None
            seen = self.newest.take(patience=GLANCE)
            if seen is None:
                continue
            chunk = self._ask(seen, self._prefix(seen) if answers >= self.config.warm_up else None)
            if chunk is None:
                if self._in_a_row >= self.config.most_errors:
                    assert self._error is not None
                    raise self._error
                continue
            self._count(seen)
            steps, answers = len(chunk.actions), answers + 1
            self._running = Placed(np.asarray(chunk.actions), seen.time_ns, self._step_ns)
        self._running = None
        return steps

    def _prefix(self, seen: Seen) -> ActionPrefix | None:
        if self._running is None or not self.config.prefix or self.config.mode == "sync":
            return None
        delay = max(1, self.latency.delay_steps(self._rates.policy_rate))
        return prefix_at(self._running, seen.time_ns, delay, self.config.form)

    def _ask(self, seen: Seen, prefix: ActionPrefix | None) -> ActionChunk | None:
        """One inference; None if it failed."""
        attempt, chunk = _Attempt(), None
        self._inferences += 1
        with attempt:
            chunk = self._act(seen, prefix)
        if attempt.error is None:
            self._in_a_row = 0
            return chunk
        self._error = attempt.error
        self._errors += 1
        self._in_a_row += 1
        return None

    def _act(self, seen: Seen, prefix: ActionPrefix | None) -> ActionChunk:
        observation = seen.observation
        begin = (observation.state, self._commanded(seen.time_ns))
        if self._native is not None and prefix is not None:
            prefix = self._native.to_prefix(prefix, *begin)
        # A policy that knows of no prefix is never asked about one.
        given = {} if prefix is None else {"prefix": prefix}
        chunk = self.policy.act(observation, **given)
        check_chunk(chunk, self._width)
        if self._native is None:
            return chunk
        return replace(chunk, actions=self._native.to_commands(chunk.actions, *begin))

    def _count(self, seen: Seen) -> float:
        """The age of an observation whose chunk is there [s]."""
        age = (time.monotonic_ns() - seen.time_ns) * 1e-9
        self.latency.add(age + 1.0 / self._rates.tick_rate)
        return age

    def _step(self, seen: Seen, prefix: ActionPrefix | None) -> None:
        chunk = self._ask(seen, prefix)
        if self._ending.is_set():
            return
        if chunk is None:
            if self._in_a_row >= self.config.most_errors:
                self._executor.halt()
                self._end_as("errors")
            self._ending.wait(GLANCE)
            return
        age = self._count(seen)
        actions_HJ = np.asarray(chunk.actions, np.float64)
        if self.config.mode == "sync":
            rows = self.config.execute + (self._native is not None)
            self._hand_in(actions_HJ[:rows], time.monotonic_ns())
            return
        reason = self._unfit(age, len(actions_HJ), prefix)
        if reason is None:
            self._hand_in(actions_HJ, seen.time_ns)
        else:
            self._discarded[reason] += 1

    def _unfit(self, age: float, steps: int, prefix: ActionPrefix | None) -> str | None:
        """Why a chunk is not handed in."""
        rate = self._rates.policy_rate
        if age * rate >= steps:
            return "expired"  # also for a robot that rests: it would act on what it saw long ago
        if prefix is None:
            return None
        assert self._running is not None
        if self._executor.state not in MOVING:
            return "late"  # its first actions are those of a chunk that was given up
        # It begins otherwise than the robot went on. Where time is left, the next one will do.
        left = (self._running.end_ns - time.monotonic_ns()) * 1e-9 * rate
        return "late" if age * rate > prefix.frozen and left > 2 * prefix.frozen else None

    def _hand_in(self, actions_HJ: np.ndarray, observed_ns: int) -> None:
        placed = Placed(actions_HJ, observed_ns, self._step_ns, self._rates.held)
        if self._ensemble is not None:
            if self._executor.state not in MOVING:
                self._ensemble.clear()
            actions_HJ = self._ensemble.add(placed)
        submitted = self._executor.submit(actions_HJ, observed_ns)
        self._running = None
        if not submitted.accepted:
            self._discarded[submitted.verdict] += 1
        begin_ns = self._begin_of(submitted.chunk, observed_ns) if submitted.accepted else None
        if begin_ns is None:
            if self._ensemble is not None:
                self._ensemble.drop_last()
            return
        self.begun.append(Begun(submitted.chunk, observed_ns, begin_ns))
        if self._ensemble is not None:
            self._ensemble.move_last(begin_ns)
        self._running = Placed(actions_HJ, begin_ns, self._step_ns, self._rates.held)
        self._next_ns = begin_ns + self.config.execute * self._step_ns

    def _begin_of(self, chunk: int, observed_ns: int) -> int | None:
        """When the executor began it, None if it did not."""
        with self._there:
            seen = self._there.wait_for(
                lambda: self._sent[0] >= chunk or self._ending.is_set(), 20 * GLANCE
            )
            number, rested, first_ns = self._sent
        if not seen or number != chunk:
            return None
        return first_ns if rested else observed_ns


class _Attempt:
    """Keeps whatever is raised inside the block."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> "_Attempt":
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error
        return error is not None
