"""Whatever inference does, commands are finite, inside their limits, and end in a stop on time.

In virtual time over the control thread's own code. Full counts: ``-m soak``.
"""

import math
from typing import Any

import numpy as np
import pytest

from vlakern.ops import _native

pytestmark = pytest.mark.skipif(_native.missing() is not None, reason="no native module")

STOP_NS, FAULT_NS = 100_000_000, 500_000_000
MOVING = ("running", "starved")


class Robot:
    """A core with random limits, and what a robot measures of its commands."""

    def __init__(self, rng: np.random.Generator, kind: int | None = None, dims: int = 2) -> None:
        kind = int(rng.integers(3)) if kind is None else kind
        self.rate = float(rng.choice([50.0, 125.0, 200.0, 1000.0]))
        self.policy_rate = float(rng.uniform(2.0, min(self.rate, 60.0)))
        self.low = rng.uniform(-3.0, 0.0, dims)
        self.high = self.low + rng.uniform(0.1, 5.0, dims)
        self.v = 10 ** rng.uniform(-1.0, 1.0, dims)
        self.a = self.v * 10 ** rng.uniform(0.0, 2.0, dims) if kind > 0 else None
        self.j = (
            self.a * 10 ** rng.uniform(0.3, 2.0, dims) if self.a is not None and kind > 1 else None
        )
        self.start = rng.uniform(self.low, self.high)
        self.core = self.twin()
        self.period, self.now = round(1e9 / self.rate), 1_000_000_000
        self.step = round(1e9 / self.policy_rate)
        self.path = [self.start] * 4
        self.state = "waiting"

    def twin(self) -> Any:
        """Another robot that is the same."""
        each = [self.low, self.high, self.v, self.a, self.j]
        return _native.cpu_module().ExecutorCore(
            [[] if one is None else one.tolist() for one in each],
            {
                "tick_rate": self.rate,
                "policy_rate": self.policy_rate,
                "most_steps": 64.0,
                "stop_after": STOP_NS * 1e-9,
                "fault_after": FAULT_NS * 1e-9,
            },
            [],
            self.start.tolist(),
        )

    def submit(self, chunk: np.ndarray, observed: int, core: Any = None) -> str:
        chunk = np.ascontiguousarray(chunk, np.float64)
        return (core or self.core).submit(chunk.ctypes.data, *chunk.shape, observed, self.now)

    def tick(self, ticks: int = 1) -> np.ndarray:
        """The newest command, checked against those before it."""
        self.now += self.period * ticks
        _, _, _, self.state, position, _ = self.core.tick(self.now)
        self.path = [*self.path[-3:], np.array(position)]
        self.check()
        return self.path[-1]

    def check(self) -> None:
        path = np.stack(self.path)
        assert np.isfinite(path[-1]).all()
        assert (path[-1] >= self.low).all()
        assert (path[-1] <= self.high).all()
        for order, limit in enumerate((self.v, self.a, self.j), 1):
            if limit is not None:
                rounding = 2e-15 * (2 * self.rate) ** order
                steepest = np.abs(np.diff(path, order, axis=0)[-1]) * self.rate**order
                assert (steepest <= limit * (1 + 1e-6) + rounding).all(), (order, steepest, limit)


def chunk(rng: np.random.Generator, robot: Robot, steps: int | None = None) -> np.ndarray:
    wild = 10 ** rng.uniform(0, 300) if rng.random() < 0.1 else 4.0
    return rng.uniform(-wild, wild, (steps or int(rng.integers(1, 20)), len(robot.start)))


def ends(rng: np.random.Generator) -> str:
    """One run of inference that stalls, crashes or hangs, and when the robot brakes."""
    robot, kind = Robot(rng), str(rng.choice(["stall", "crash", "hang"]))
    end = 0
    for index in range(int(rng.integers(1, 4))):
        steps = int(rng.integers(2, 12))
        assert robot.submit(chunk(rng, robot, steps), robot.now) == "accepted"
        robot.tick()
        # From rest it begins with the tick, else with its observation.
        observed = robot.now if index == 0 else robot.now - robot.period
        end = observed + steps * robot.step
        for _ in range(int(rng.integers(0, max(1, (end - robot.now) // robot.period)))):
            robot.tick()
            assert robot.state == "running"
    back = end + int(rng.integers(0, STOP_NS)) if kind == "stall" else None
    old = robot.now - robot.period  # of the observation that a hung inference answers at last
    while robot.state != "fault":
        if back is not None and robot.now >= back and robot.now < end + STOP_NS - robot.period:
            assert robot.submit(chunk(rng, robot, 3), robot.now) == "accepted"
            robot.tick()
            assert robot.state == "running", "a chunk in time goes on"
            end, back = robot.now - robot.period + 3 * robot.step, None
            continue
        if kind == "crash":
            spoilt = chunk(rng, robot)
            spoilt[rng.integers(len(spoilt)), 0] = np.nan
            assert robot.submit(spoilt, robot.now) in ("not_finite", "fault")
        if kind == "hang" and robot.state in MOVING and robot.now > old + robot.step:
            assert robot.submit(chunk(rng, robot, 1), old) in ("expired", "out_of_order")
        robot.tick()
        without = robot.now - end
        if without < 0:
            assert robot.state == "running"
        elif without < STOP_NS:
            assert robot.state == "starved", (kind, without)
        elif without < FAULT_NS:
            # The tick of the deadline at the latest.
            assert robot.state in ("stopping", "holding"), (kind, without)
        else:
            assert robot.state == "fault"
            assert without < FAULT_NS + robot.period
    assert robot.submit(chunk(rng, robot), robot.now) == "fault"
    return kind


def test_a_stop_begins_in_the_tick_of_its_deadline() -> None:
    rng = np.random.default_rng(11)
    assert {ends(rng) for _ in range(60)} == {"stall", "crash", "hang"}


@pytest.mark.soak
def test_a_stop_begins_in_the_tick_of_its_deadline_3000_times() -> None:
    rng = np.random.default_rng(12)
    for _ in range(3000):
        ends(rng)


def injections(rng: np.random.Generator, count: int) -> int:
    """Spoilt chunks, of which a twin that never saw them knows nothing; returns how many."""
    done = 0
    while done < count:
        robot = Robot(rng)
        twin = robot.twin()
        for _ in range(40):
            sound = chunk(rng, robot)
            if rng.random() < 0.3:
                said = robot.submit(sound, robot.now)
                assert said == robot.submit(sound, robot.now, twin)
            spoilt = sound.copy()
            for _ in range(int(rng.integers(1, 4))):
                at = tuple(rng.integers(spoilt.shape))
                spoilt[at] = rng.choice([np.nan, np.inf, -np.inf, -np.nan])
            assert robot.submit(spoilt, robot.now) in ("not_finite", "fault")
            done += 1
            found = robot.tick()
            same = twin.tick(robot.now)
            assert robot.state == same[3]
            np.testing.assert_array_equal(found, same[4])  # the former chunk goes on, to the bit
    return done


def test_no_nan_reaches_the_sink() -> None:
    assert injections(np.random.default_rng(21), 2000) >= 2000


@pytest.mark.soak
def test_no_nan_of_100000_reaches_the_sink() -> None:
    assert injections(np.random.default_rng(22), 100_000) >= 100_000


def stopping_place(q: float, v: float, a: float) -> float:
    """Where the hardest braking from a speed ends, tick after tick."""
    while v != 0.0:
        v = math.copysign(max(0.0, abs(v) - a), v)
        q += v
    return q


def reference_range(robot: Robot, i: int, q: float, v: float) -> tuple[float, float]:
    """The commands that a robot at ``q`` with ``v`` per tick may be sent next, by bisection.

    Those inside velocity and acceleration from which it still stops before the end of its range.
    """
    T = 1.0 / robot.rate
    most, low, high = float(robot.v[i]) * T, float(robot.low[i]), float(robot.high[i])
    if robot.a is None:
        return max(low, q - most), min(high, q + most)
    a = float(robot.a[i]) * T * T

    def stops(speed: float, side: float) -> bool:
        place = stopping_place(q + speed, speed, a)
        return place <= high if side > 0 else place >= low

    found = []
    for side in (-1.0, 1.0):
        good, bad = v - side * a, v + side * a
        bad = max(-most, min(most, bad))
        good = max(-most, min(most, good))
        if stops(bad, side):
            found.append(q + bad)
            continue
        for _ in range(60):
            middle = (good + bad) / 2
            good, bad = (middle, bad) if stops(middle, side) else (good, middle)
        found.append(q + good)
    return found[0], found[1]


def wanted(one: np.ndarray, begin: int, step: int, now: int) -> np.ndarray:
    """Of a chunk, by numpy's own interpolation."""
    times = np.arange(len(one)) * step
    return np.array([np.interp(now - begin, times, column) for column in one.T])


def clamped(rng: np.random.Generator) -> None:
    """A random chunk from a random state of a random robot, tick by tick beside the reference."""
    robot = Robot(rng, kind=int(rng.integers(3)), dims=1)
    robot.submit(chunk(rng, robot, 12), robot.now)
    for _ in range(int(rng.integers(1, 12))):
        robot.tick()
    if robot.state not in MOVING:
        return
    one, begin = chunk(rng, robot, 12), robot.now
    assert robot.submit(one, begin) == "accepted"
    for _ in range(3):
        q, v = float(robot.path[-1][0]), float((robot.path[-1] - robot.path[-2])[0])
        found = float(robot.tick()[0])  # checks differences, of jerk too
        least, most = reference_range(robot, 0, q, v)
        grain = 1e-9 * (1.0 + abs(q)) + 1e-6 * float(robot.v[0]) / robot.rate
        assert least - grain <= found <= most + grain, (least, found, most)
        if robot.a is None and robot.state == "running":
            goal = float(wanted(one, begin, robot.step, robot.now)[0])
            exact = min(max(goal, least), most)
            # What interpolation between huge numbers rounds is no error of the clamp, and beside
            # the end of its range it halves 16 times.
            near = 2.0**-15 * float(robot.v[0]) / robot.rate
            assert abs(found - exact) <= grain + near + 1e-9 * abs(goal), (found, exact)
    robot.core.halt()
    for _ in range(100):  # and whatever it was, it can stop from there, inside the limits
        robot.tick()
        if (np.diff(robot.path, axis=0) == 0).all():
            break


def test_commands_are_those_of_a_reference_clamp() -> None:
    rng = np.random.default_rng(31)
    for _ in range(300):
        clamped(rng)


@pytest.mark.soak
def test_100000_commands_are_those_of_a_reference_clamp() -> None:
    rng = np.random.default_rng(32)
    for _ in range(100_000):
        clamped(rng)
