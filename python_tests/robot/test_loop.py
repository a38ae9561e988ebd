"""The loop drives, joins its chunks, and ends safe whatever goes wrong."""

import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from vlakern.errors import ConfigError, InputError, VlakernError
from vlakern.ops import _native
from vlakern.robot import ExecutorConfig, Limits, Loop, LoopConfig, LoopReport, SimulatedArm
from vlakern.robot import Trouble as Bad
from vlakern.robot.executor import Command
from vlakern.types import ActionChunk, ActionPrefix, Observation

pytestmark = pytest.mark.skipif(_native.missing() is not None, reason="no native module")

LIMITS = Limits([-1.0, -1.0], [1.0, 1.0], [8.0, 8.0], [400.0, 400.0])
RATES = ExecutorConfig(policy_rate=20.0, tick_rate=200.0)
CONFIG = LoopConfig(execute=8, patience=20.0, warm_up=1, probes=2)
H, STEP = 24, 50_000_000
MOVING = ("running", "starved")


def wave(times_ns: np.ndarray) -> np.ndarray:
    """Where the joints are to be at a time: every on-time action agrees, a stale one does not."""
    phase = np.pi * (np.asarray(times_ns, np.int64) % 4_000_000_000) * 1e-9
    return 0.5 * np.stack([np.sin(phase), np.cos(phase)], axis=-1)


class Stamping(SimulatedArm):
    """Its state is the time [ms] of the look, of a clock that fp32 holds."""

    epoch_ns: int = 0

    def observe(self) -> Any:
        seen = super().observe()
        if seen is None:
            return None
        stamp = np.array([(seen.time_ns - self.epoch_ns) * 1e-6], np.float32)
        return replace(seen, observation=replace(seen.observation, state=stamp))


@dataclass
class Wave:
    """A policy of known chunks that takes its time, and fails at random.

    Attributes:
        looked: age of every observation [s] when inference began on it.
        prefixes: what it was told.
    """

    epoch_ns: int
    took: float = 0.0
    jitter: float = 0.0
    errors: float = 0.0
    lost: float = 0.0
    nan: float = 0.0
    seed: int = 0
    sound: int = 3
    looked: list[float] = field(default_factory=list)
    prefixes: list[ActionPrefix | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng([self.seed, 7])

    def act(self, observation: Observation, *, prefix: ActionPrefix | None = None) -> ActionChunk:
        seen_ns = self.epoch_ns + round(float(observation.state[0]) * 1e6)
        self.looked.append((time.monotonic_ns() - seen_ns) * 1e-9)
        self.prefixes.append(prefix)
        time.sleep(float(np.clip(self._rng.normal(self.took, self.jitter), 0.0, 1.0)))
        if len(self.looked) > self.sound:
            error, lost, nan = self._rng.random(3) < (self.errors, self.lost, self.nan)
            if lost:
                time.sleep(0.1)
                raise TimeoutError("no answer came")
            if error:
                raise RuntimeError("500")
            if nan:
                return ActionChunk(np.full((H, 2), np.nan))
        return ActionChunk(wave(seen_ns + np.arange(H) * STEP))


def arm(trouble: Bad | None = None, seed: int = 0) -> Stamping:
    now = time.monotonic_ns()
    found = Stamping(tuple(wave(np.array(now))), trouble=trouble or Bad(), seed=seed)
    found.epoch_ns = now
    return found


def drive(
    robot: Stamping, policy: Any, seconds: float, config: LoopConfig = CONFIG, chunks: int = 10**6
) -> tuple[Loop, LoopReport]:
    """For some seconds, or until so many chunks are begun, with patience for a busy machine."""
    rates = RATES if chunks == 10**6 else replace(RATES, fault_after=10.0)
    loop = Loop(robot, policy, LIMITS, rates, config)
    return loop, loop.run(seconds, until=lambda: len(loop.begun) >= chunks)


def check_limits(sent: list[Command]) -> None:
    """As the robot measures them: differences per tick, of what was sent."""
    assert sent
    positions = np.stack([c.position_J for c in sent])
    assert np.isfinite(positions).all()
    assert np.abs(positions).max() <= 1.0 + 1e-9
    assert [c.tick for c in sent] == list(range(1, len(sent) + 1))
    assert np.abs(np.diff(positions, axis=0)).max(initial=0.0) <= 8.0 / 200 + 1e-9
    jumps = np.abs(np.diff(positions, n=2, axis=0)).max(initial=0.0)
    assert jumps <= 400.0 / 200**2 + 1e-9
    np.testing.assert_allclose(sent[-1].velocity_J, 0.0, atol=1e-9)  # ends at rest


def check_fresh(loop: Loop, sent: list[Command]) -> int:
    """No chunk is older than the one before or than it is long; returns how many were executed."""
    begun = {b.chunk: b for b in loop.begun}
    executed = list(dict.fromkeys(c.chunk for c in sent if c.chunk))
    assert executed == sorted(executed)
    observed = [begun[i].observed_ns for i in executed if i in begun]
    assert observed == sorted(observed)
    for command in sent:
        if command.state == "running" and command.chunk in begun:
            one = begun[command.chunk]
            assert 0 <= one.begin_ns - one.observed_ns < H * STEP
            assert one.begin_ns <= command.time_ns < one.begin_ns + H * STEP
    return len(executed)


def off_course(loop: Loop, sent: list[Command], settled: float = 0.15) -> float:
    """How far commands of spliced chunks are from the wave at their time, once they had time."""
    spliced = {b.chunk: b.observed_ns for b in loop.begun if b.begin_ns == b.observed_ns}
    since, before_ns, far = None, 0, [0.0]
    for command in sent:
        on_time = command.state == "running" and command.chunk in spliced
        paused, before_ns = command.time_ns - before_ns > 10_000_000, command.time_ns
        since = (since or command.time_ns) if on_time and not paused else None
        if since is not None and command.time_ns - since > settled * 1e9:
            far.append(float(np.abs(command.position_J - wave(np.array(command.time_ns))).max()))
    return max(far)


CONDITIONS: dict[str, tuple[dict[str, float], Bad]] = {
    "clean": ({}, Bad()),
    "20±5 ms": ({"took": 0.02, "jitter": 0.005}, Bad()),
    "150±40 ms": ({"took": 0.15, "jitter": 0.04}, Bad()),
    "20 % lost": ({"took": 0.02, "lost": 0.2}, Bad(loss=0.2)),
    "20 % errors": ({"took": 0.02, "errors": 0.2, "nan": 0.05}, Bad()),
    "duplicates": ({"took": 0.02}, Bad(duplicates=0.5)),
    "reordering": ({"took": 0.02}, Bad(latency=0.02, jitter=0.02, reordering=0.3)),
}


def survives(name: str, seed: int, config: LoopConfig, seconds: float) -> None:
    timing, trouble = CONDITIONS[name]
    robot = arm(trouble, seed)
    policy = Wave(robot.epoch_ns, seed=seed, **timing)  # pyright: ignore[reportArgumentType]
    loop, report = drive(robot, policy, seconds, config)
    check_limits(robot.sent)
    assert check_fresh(loop, robot.sent) >= 1, report
    # A step of 50 ms too late would be 0.078 away; interpolation alone is 0.0015.
    assert off_course(loop, robot.sent) < 0.03
    # Two policy periods, and what a busy machine adds between the look and the call.
    assert max(policy.looked) < 0.1 + 0.15
    assert report.ended in ("time", "fault")
    assert (report.executor.sink_failures, report.hung) == (0, ())
    if name in ("20 % lost", "20 % errors"):
        assert report.errors > 0 or seconds < 5


@pytest.mark.parametrize("name", CONDITIONS)
def test_it_stays_safe_in(name: str, seed: int) -> None:
    """0 stale actions, 0 limits passed, at rest at the end; with and without prefixes by turns."""
    config = replace(CONFIG, prefix=bool(list(CONDITIONS).index(name) % 2))
    survives(name, seed, config, 1.1)


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["plain", "prefix", "ensemble"])
@pytest.mark.parametrize("name", CONDITIONS)
def test_it_stays_safe_25_times_in(name: str, mode: str) -> None:
    for seed in range(25):
        ensemble = 0.01 if mode == "ensemble" else None
        config = replace(CONFIG, prefix=mode == "prefix", ensemble=ensemble)
        survives(name, seed, config, 2.0)


def test_the_first_chunk_skips_nothing_and_warm_up_is_no_latency() -> None:
    """LeRobot #4223: a first inference of 0.7 s, then 0.1 s; the robot begins at action 0."""

    class Warming(Wave):
        def act(self, *args: Any, **more: Any) -> ActionChunk:
            if not self.looked:
                time.sleep(0.7)
            return super().act(*args, **more)

    robot = arm()
    loop, report = drive(robot, Warming(robot.epoch_ns, took=0.1), 0.5)
    first = loop.begun[0]
    moving = [c for c in robot.sent if c.state == "running"]
    assert first.begin_ns == moving[0].time_ns > first.observed_ns
    assert report.latency["max"] < 0.7
    assert 2 <= report.delay_steps <= 8


def test_prefixes_are_what_the_robot_does_meanwhile() -> None:
    """Each begins with the actions that were sent while its inference ran."""
    robot = arm()
    policy = Wave(robot.epoch_ns, took=0.1)
    loop, _ = drive(robot, policy, 20.0, replace(CONFIG, prefix=True, form="cheap"), chunks=5)
    before = 2 * CONFIG.warm_up + CONFIG.probes
    given = [p for p in policy.prefixes[before:] if p is not None]
    assert {p.form for p in given} == {"cheap"}
    assert len(given) >= 2
    times = np.array([c.time_ns for c in robot.sent])
    positions = np.stack([c.position_J for c in robot.sent])
    checked = 0
    for begun in list(loop.begun)[1:]:
        starts = [np.abs(p.actions[0] - wave(np.array(begun.observed_ns))).max() for p in given]
        prefix = given[int(np.argmin(starts))]
        assert 2 <= prefix.frozen <= len(prefix.actions) <= H
        for k in range(prefix.frozen):
            i = int(np.searchsorted(times, begun.observed_ns + k * STEP))
            if i < len(times) and times[i] - times[0] > 200_000_000:
                # Between ticks and looks: 5 ms of the wave are 0.008.
                np.testing.assert_allclose(positions[i], prefix.actions[k], atol=0.03)
                checked += 1
    assert checked > 2


def test_an_ensemble_follows_the_wave_too() -> None:
    robot = arm()
    config = replace(CONFIG, execute=4, ensemble=0.01)
    loop, report = drive(robot, Wave(robot.epoch_ns, took=0.02), 20.0, config, chunks=5)
    check_limits(robot.sent)
    assert report.ended == "done"
    assert off_course(loop, robot.sent) < 0.06


def test_the_synchronous_loop_executes_then_looks() -> None:
    """Between chunks the robot stands for as long as inference takes."""
    robot = arm()
    policy = Wave(robot.epoch_ns, took=0.15)
    loop, report = drive(robot, policy, 20.0, replace(CONFIG, mode="sync", execute=4), chunks=4)
    check_limits(robot.sent)
    begins = np.diff([b.begin_ns for b in loop.begun]) * 1e-9
    assert len(begins) == 3
    assert (begins > 0.2 + 0.14).all()
    assert report.executor.starved > 0
    assert policy.prefixes == [None] * len(policy.prefixes)


class Failing(Wave):
    """Sound for a while, then as the test says."""

    until: int = 5
    released: threading.Event

    def act(self, *args: Any, **more: Any) -> ActionChunk:
        if len(self.looked) >= self.until:
            self.fail()
        return super().act(*args, **more)

    def fail(self) -> None:
        raise RuntimeError("the GPU is gone")


class Hanging(Failing):
    def fail(self) -> None:
        self.released.wait(60)


class Leaving(Failing):
    def fail(self) -> None:
        raise SystemExit(3)


@pytest.mark.parametrize("kind", [Failing, Leaving, Hanging])
def test_errors_exits_and_hangs_end_in_the_executors_fault(kind: type[Failing]) -> None:
    """And in a report, soon."""
    robot = arm()
    policy = kind(robot.epoch_ns)
    policy.released = threading.Event()
    begin = time.monotonic()
    _, report = drive(robot, policy, 30.0, replace(CONFIG, most_errors=3))
    assert time.monotonic() - begin < 15
    assert report.ended in (("fault",) if kind is Hanging else ("errors", "fault"))
    assert report.executor.faults == 1
    assert robot.sent[-1].state == "fault"
    check_limits(robot.sent)
    assert report.hung == (("vlakern-infer",) if kind is Hanging else ())
    assert (report.error is None) == (kind is Hanging)
    policy.released.set()


@pytest.mark.parametrize("bad", [Bad(send_fault=0.05), Bad(observe_fault=0.05)])
def test_an_arm_that_fails_ends_the_run(bad: Bad, seed: int) -> None:
    robot = arm(bad, seed)
    loop = Loop(robot, Wave(robot.epoch_ns), LIMITS, RATES, CONFIG)
    try:
        report = loop.run(30.0)
    except ConnectionError:
        assert not robot.sent  # it failed before the robot moved
        return
    assert report.ended == "fault"
    assert "ConnectionError" in (report.error or "")


def test_slow_inference_is_refused_before_the_robot_moves() -> None:
    robot = arm()
    with pytest.raises(ConfigError, match="d <= s <= H - d"):
        drive(robot, Wave(robot.epoch_ns, took=0.6), 1.0)
    assert robot.sent == []


def test_a_policy_that_fails_at_the_start_is_heard() -> None:
    robot = arm()
    policy: Failing = Failing(robot.epoch_ns)
    policy.until = 0
    with pytest.raises(RuntimeError, match="the GPU is gone"):
        drive(robot, policy, 1.0)
    policy = Hanging(robot.epoch_ns)
    policy.until, policy.released = 0, threading.Event()
    with pytest.raises(VlakernError, match=r"no chunk after 0\.3 s"):
        drive(robot, policy, 1.0, replace(CONFIG, patience=0.3))
    policy.released.set()
    assert robot.sent == []


def test_a_run_ends_when_it_is_told() -> None:
    robot = arm()
    loop = Loop(robot, Wave(robot.epoch_ns), LIMITS, RATES, CONFIG)
    report = loop.run(until=lambda: len(robot.sent) > 50)
    assert report.ended == "done"
    with pytest.raises(InputError, match="has run"):
        loop.run(1.0)
    other = Loop(arm(), Wave(robot.epoch_ns), LIMITS, RATES, CONFIG)
    threading.Timer(0.3, other.stop).start()
    assert other.run(30.0).ended == "stopped"
