"""Commands come on time and inside their limits, whatever inference does."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlakern.errors import InputError, Unsupported
from vlakern.ops import _native
from vlakern.robot import Executor, ExecutorConfig, Limits, SharedCommands
from vlakern.robot.executor import Command

pytestmark = pytest.mark.skipif(_native.missing() is not None, reason="no native module")

ARM = Limits([-1.0, -2.0], [1.0, 2.0], [1.0, 2.0], [10.0, 20.0])
CONFIG = ExecutorConfig(policy_rate=20.0, tick_rate=200.0)
MS = 1_000_000


def executor(seen: list[Command] | None = None, **more: Any) -> Executor:
    found = [] if seen is None else seen
    return Executor(ARM, ExecutorConfig(**{"policy_rate": 20.0, **more}), found.append)


def wait(running: Executor, state: str, patience: float = 5.0) -> None:
    """For a state; on a busy machine its time comes late, never early."""
    end = time.monotonic() + patience
    while running.state != state:
        assert time.monotonic() < end, f"{running.state} after {patience} s, expected {state}"
        time.sleep(0.002)


def ramp(steps: int, to: float = 0.2) -> np.ndarray:
    """From rest to rest."""
    return (to * (1 - np.cos(np.linspace(0, np.pi, steps))) / 2)[:, None].repeat(2, axis=1)


def test_a_chunk_is_interpolated_and_then_held() -> None:
    seen: list[Command] = []
    with executor(seen) as arm:
        arm.start([0.0, 0.0])
        assert arm.submit(ramp(8)).accepted
        wait(arm, "starved")
        time.sleep(0.05)
    running = [c for c in seen if c.state == "running"]
    assert {c.chunk for c in running} == {1}
    # Ten ticks per action, some of them missed where the machine is busy.
    assert 30 <= len(running) <= 80
    begin = running[0].time_ns
    times = np.array([c.time_ns - begin for c in running]) / 50 / MS
    wanted = np.interp(times, np.arange(8), ramp(8)[:, 0])
    found = np.stack([c.position_J for c in running])
    # After ticks that were missed it takes a while to catch up.
    ticks = np.array([c.time_ns for c in seen[: seen.index(running[-1]) + 1]])[-len(running) - 1 :]
    late = np.convolve(np.diff(ticks) > 5 * MS, np.ones(12))[: len(running)] > 0
    far = np.abs(found - wanted[:, None])[~late]
    assert far.max(initial=0.0) < 0.01
    np.testing.assert_allclose(seen[-1].position_J, [0.2, 0.2], atol=1e-3)


def test_the_watchdog_stops_then_faults_until_reset() -> None:
    seen: list[Command] = []
    with executor(seen) as arm:
        arm.start([0.0, 0.0])
        arm.submit(ramp(4))
        wait(arm, "fault")
        assert arm.submit(ramp(4)).verdict == "fault"
        arm.reset()
        wait(arm, "waiting")
        assert arm.submit(ramp(4)).accepted
        wait(arm, "running")
        counters = arm.counters()
    assert (counters.stops, counters.faults) == (1, 1)
    assert counters.submitted == {
        "accepted": 2, "not_finite": 0, "out_of_order": 0, "expired": 0, "fault": 1, "full": 0
    }  # fmt: skip
    states = [c.state for c in seen]
    assert states.index("starved") < states.index("stopping") < states.index("fault")


def test_a_refused_chunk_leaves_the_former_one_running() -> None:
    bad = ramp(8)
    bad[7, 1] = np.nan
    with executor() as arm:
        arm.start([0.0, 0.0])
        before = time.monotonic_ns()
        assert arm.submit(ramp(20), before).accepted
        wait(arm, "running")
        assert arm.submit(bad).verdict == "not_finite"
        assert arm.submit(ramp(8), before).verdict == "out_of_order"
        assert arm.submit(ramp(8), before - 5).verdict == "out_of_order"
        assert arm.submit(ramp(8), time.monotonic_ns() + 10**9).verdict == "out_of_order"
        with pytest.raises(InputError, match=r"expected time.monotonic_ns\(\), whole"):
            arm.submit(ramp(8), time.monotonic())  # type: ignore[arg-type]
        assert arm.state == "running"
        assert arm.counters().chunks == 1


def test_a_late_chunk_begins_at_the_step_of_its_observations_age() -> None:
    """But the first one, from rest, at its first action."""
    core = _native.cpu_module().ExecutorCore(*native(ARM, CONFIG), [0.0, 0.0])
    chunk = np.repeat(np.arange(8.0)[:, None] * 0.02, 2, axis=1)
    period, now = 5 * MS, 10**9

    def submit(observed: int, now: int) -> str:
        return core.submit(chunk.ctypes.data, *chunk.shape, observed, now)

    assert submit(now - 200 * MS, now) == "accepted"
    state, position = "", [0.0]
    for _ in range(20):
        _, _, _, state, position, _ = core.tick(now := now + period)
    # 95 ms after its begin: between its second and third action.
    assert state == "running"
    assert position[0] == pytest.approx(0.02 * 95 / 50)
    assert submit(now - 150 * MS, now) == "accepted"
    for _ in range(60):
        _, _, _, _, position, _ = core.tick(now := now + period)
        if state != "running":
            break
    assert position[0] == pytest.approx(0.14)
    assert submit(now - 10**9, now) == "out_of_order"
    assert submit(now - 1, now) == "accepted"


def native(limits: Limits, config: ExecutorConfig) -> tuple[Any, ...]:
    """As the class hands them over."""
    names = ("tick_rate", "policy_rate", "most_steps", "stop_after", "fault_after")
    wanted = [list(getattr(limits, name) or []) for name in Limits.__dataclass_fields__]
    return wanted, {name: float(getattr(config, name)) for name in names}, list(config.held)


@st.composite
def robots(draw: st.DrawFn) -> Limits:
    size, number = draw(st.integers(1, 3)), st.floats(0.1, 4.0)
    lows = [draw(st.floats(-3.0, 0.0)) for _ in range(size)]
    speeds = [draw(number) for _ in range(size)]
    accelerations = (
        [v * draw(st.floats(1.0, 50.0)) for v in speeds] if draw(st.booleans()) else None
    )
    jerks = None
    if accelerations is not None and draw(st.booleans()):
        jerks = [a * draw(st.floats(2.0, 100.0)) for a in accelerations]
    highs = [low + draw(number) for low in lows]
    return Limits(lows, highs, speeds, accelerations, jerks)


EVENTS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 400), st.integers(0, 2**31)), max_size=12
)


@settings(max_examples=60, deadline=None)
@given(robots(), EVENTS, st.sampled_from([50.0, 200.0, 1000.0]))
def test_no_command_leaves_its_limits(limits: Limits, events: Any, rate: float) -> None:
    """Against differences that are taken from the commands alone."""
    config = ExecutorConfig(policy_rate=20.0, tick_rate=rate)
    low, high = np.array(limits.position_min), np.array(limits.position_max)
    start = (low + high) / 2
    core = _native.cpu_module().ExecutorCore(*native(limits, config), start.tolist())
    path, now = [start, start, start], 10**9
    for kind, age, seed in events:
        rng = np.random.default_rng(seed)
        chunk = np.ascontiguousarray(rng.uniform(-5, 5, (int(rng.integers(1, 20)), len(start))))
        if kind == 0:
            chunk[rng.integers(len(chunk)), 0] = rng.choice([np.nan, np.inf, -np.inf])
        verdict = core.submit(chunk.ctypes.data, *chunk.shape, now - age * MS, now)
        assert kind != 0 or verdict != "accepted"
        if kind == 1:
            core.halt()
        if kind == 2:
            core.reset()
        for _ in range(int(rng.integers(1, 60))):
            now += round(1e9 / rate)
            path.append(np.array(core.tick(now)[4]))
    found = np.stack(path)
    assert np.isfinite(found).all()
    assert (found >= low).all()
    assert (found <= high).all()
    for order, limit in enumerate((limits.velocity, limits.acceleration, limits.jerk), 1):
        if limit is not None:
            rounding = 2e-15 * (2 * rate) ** order
            steepest = np.abs(np.diff(found, order, axis=0)) * rate**order
            assert (steepest <= np.array(limit) * (1 + 1e-6) + rounding).all()


def test_ticks_that_pass_in_a_stall_are_skipped() -> None:
    seen: list[Command] = []
    with executor(seen) as arm:
        arm.start([0.0, 0.0])
        arm._native.stall(0.2)
        time.sleep(0.5)
        missed = arm.counters().missed
        late = [tick.late_ns for tick in arm.trace()]
    assert missed >= 39
    times = np.diff([c.time_ns for c in seen])
    assert times.min() >= 5 * MS  # one command per period, before and after
    assert max(late) >= 190 * MS


def test_a_sink_that_raises_stops_the_robot_and_is_kept() -> None:
    calls: list[Command] = []

    def send(command: Command) -> None:
        calls.append(command)
        if len(calls) == 20:
            raise ConnectionError("the robot has gone")

    arm = Executor(ARM, CONFIG, send)
    with arm:
        arm.start([0.0, 0.0])
        arm.submit(ramp(20))
        wait(arm, "fault")
    assert str(arm.error) == "the robot has gone"
    assert len(calls) == 20


def test_a_sink_that_hangs_stops_the_robot() -> None:
    """It falls a whole queue behind."""
    free: list[Command] = []
    blocked = threading.Event()

    def send(command: Command) -> None:
        free.append(command)
        blocked.wait(20)

    arm = Executor(ARM, ExecutorConfig(20.0, tick_rate=1000.0), send)
    arm.start([0.0, 0.0])
    wait(arm, "fault")
    assert arm.counters().sink_failures >= 1
    begin = time.monotonic()
    assert not arm.stop(0.2)  # the program goes on, and is told
    assert time.monotonic() - begin < 5
    assert "has not returned within 0.2 s" in str(arm.error)
    with pytest.raises(InputError, match="make another executor"):
        arm.start([0.0, 0.0])
    blocked.set()
    assert arm.stop()
    assert len(free) == 1  # what was due while it hung is not sent late


READER = """
import sys, time
from vlakern.robot import SharedCommands
shared = SharedCommands(sys.argv[1])
seen = set()
end = time.monotonic() + 20
while len(seen) < 50 and time.monotonic() < end:
    command = shared.newest()
    if command is not None:
        assert command.position_J.shape == (2,), command
        seen.add(command.tick)
    time.sleep(0.001)
print(len(seen), command.state)
"""


@pytest.fixture
def segment() -> Iterator[str]:
    name = f"vlakern-test-{time.monotonic_ns()}"
    yield name
    assert not Path("/dev/shm", name).exists(), "the segment outlives its executor"


def test_another_process_reads_commands_from_shared_memory(segment: str) -> None:
    with Executor(ARM, CONFIG, shared=segment) as arm:
        with pytest.raises(Unsupported, match="it exists; another executor"):
            Executor(ARM, CONFIG, shared=segment)
        arm.start([0.0, 0.0])
        command = [sys.executable, "-c", READER, segment]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == ["50", "waiting"], done.stderr
    del arm


def test_shared_memory_that_is_not_there_or_not_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="No such file"):
        SharedCommands("vlakern-test-none")
    with pytest.raises(InputError, match="without '/'"):
        SharedCommands("../etc/passwd")
    other = Path("/dev/shm", f"vlakern-test-other-{time.monotonic_ns()}")
    other.write_bytes(b"x" * 16)
    try:
        with pytest.raises(Unsupported, match="another size"):
            SharedCommands(other.name)
    finally:
        other.unlink()


def test_python_threads_do_not_delay_the_tick() -> None:
    """Far less than one switch interval of 5 ms, which a Python thread would wait for."""
    done = threading.Event()

    def busy() -> None:
        while not done.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=busy) for _ in range(3)]
    with executor() as arm:
        arm.start([0.0, 0.0])
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        done.set()
        for thread in threads:
            thread.join()
        late = arm.counters().late
    assert late["p50"] < 0.002


@pytest.mark.parametrize(
    ("limits", "config", "said"),
    [
        (Limits([], [], []), CONFIG, "no dimension"),
        (Limits([0.0], [1.0, 2.0], [1.0]), CONFIG, "position_max has 2 values, expected 1"),
        (Limits([1.0], [0.0], [1.0]), CONFIG, "the first smaller"),
        (Limits([0.0], [1.0], [float("nan")]), CONFIG, "velocity of dimension 0 is nan"),
        (Limits([0.0], [1.0], [1.0], None, [1.0]), CONFIG, "jerk needs limits.acceleration"),
        (ARM, ExecutorConfig(20.0, tick_rate=5000.0), "tick_rate is 5000"),
        (ARM, ExecutorConfig(float("nan")), "policy_rate is nan"),
        (ARM, ExecutorConfig(20.0, held=(2,)), "held is 2"),
        (ARM, ExecutorConfig(20.0, fault_after=0.05), "fault_after is 0.05"),
        (ARM, ExecutorConfig(20.0, priority=100), "priority is 100"),
    ],
)
def test_what_contradicts_itself_is_refused(
    limits: Limits, config: ExecutorConfig, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        Executor(limits, config, print)


def test_wrong_sizes_and_wrong_order_are_refused() -> None:
    with pytest.raises(InputError, match="one sink"):
        Executor(ARM, CONFIG)
    with executor() as arm:
        with pytest.raises(InputError, match="outside its limits"):
            arm.start([0.0, 3.0])
        with pytest.raises(InputError, match="expected 2"):
            arm.start([0.0])
        with pytest.raises(InputError, match=r"expected \[steps, dimensions\]"):
            arm.submit(np.zeros(4))
        with pytest.raises(InputError, match="1 to 64 steps and 2 dimensions"):
            arm.submit(np.zeros((65, 2)))
        arm.start([0.0, 0.0])
        with pytest.raises(InputError, match="runs already"):
            arm.start([0.0, 0.0])


def test_the_statements_say_what_was_granted() -> None:
    with executor(priority=10, cpu=0) as arm:
        arm.start([0.0, 0.0])
        core, priority = arm.statements
    assert core == "core 0: granted"
    assert priority.startswith("SCHED_FIFO priority 10: ")
