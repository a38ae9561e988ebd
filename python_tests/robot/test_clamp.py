"""Commands under limits of acceleration and jerk are those of an independent reference clamp.

Of every tick: the command can be stopped behind, and the robot did not hold back: one a little
nearer to what is wanted would pass it by, or leave a limit. Full counts: ``-m soak``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from python_tests.robot.clamp import Axes, hardest, stop
from vlakern.ops import _native

pytestmark = pytest.mark.skipif(_native.missing() is not None, reason="no native module")

N = 64
RATES = (50.0, 125.0, 200.0, 1000.0)
# Of the accelerations that a tick may choose from: what the executor's search leaves.
NEAR = 0.05


@dataclass
class Ticks:
    """What a robot of 64 axes did ``[T, N]``: states before, and what was wanted and commanded."""

    axes: Axes
    q: np.ndarray
    v: np.ndarray
    a: np.ndarray
    before: np.ndarray
    target: np.ndarray
    found: np.ndarray


class Arm:
    """Axes with limits that matter, driven by random chunks."""

    def __init__(self, rng: np.random.Generator, jerky: bool) -> None:
        self.rng, self.rate = rng, float(rng.choice(RATES))
        self.policy_rate = float(rng.uniform(self.rate / 40, self.rate / 2))
        T = 1.0 / self.rate
        V = 10 ** rng.uniform(-1, 1, N) * T
        A = V / rng.uniform(2, 40, N)
        J = A / rng.uniform(1, 25, N) if jerky else np.full(N, np.inf)
        reach = (V * V / A + V * 10) * 10 ** rng.uniform(-0.5, 1.0, N)
        low = rng.uniform(-3, 1, N)
        self.axes = Axes(low, low + reach, V, A, J)
        declared = [low, low + reach, V / T, A / T**2, J / T**3]
        self.core: Any = _native.cpu_module().ExecutorCore(
            [one.tolist() if np.isfinite(one).all() else [] for one in declared],
            {
                "tick_rate": self.rate,
                "policy_rate": self.policy_rate,
                "most_steps": 64.0,
                "stop_after": 0.1,
                "fault_after": 0.5,
            },
            [],
            (low + reach / 2).tolist(),
        )
        self.path = [low + reach / 2] * 3
        self.period, self.step = round(1e9 * T), round(1e9 / self.policy_rate)
        self.now = 10**9

    def chunk(self) -> np.ndarray:
        """Walks of any size, some of them in a straight line, most of them inside the limits."""
        steps, reach = int(self.rng.integers(1, 20)), self.axes.high - self.axes.low
        size = reach * 10 ** self.rng.uniform(-3, 0.3, N)
        slope = self.rng.normal(size=N) * size / 4
        walk = self.rng.normal(size=(steps, N)) * size * self.rng.choice([0.0, 1.0], N)
        walk = self.path[-1] + walk + slope * np.arange(steps)[:, None]
        wild = self.rng.uniform(-1, 2, (steps, N)) * reach + self.axes.low
        return np.ascontiguousarray(np.where(self.rng.random(N) < 0.3, wild, walk))

    def drive(self, ticks: int) -> Ticks:
        """The ticks in which it ran."""
        rows: list[tuple[np.ndarray, ...]] = []
        while len(rows) < ticks:
            one, moved, begin, state = self.chunk(), bool(rows), self.now, ""
            said = self.core.submit(one.ctypes.data, *one.shape, begin, self.now)
            assert said == "accepted"
            for _ in range(int(self.rng.integers(2, 25))):
                self.now += self.period
                _, _, _, state, position, _ = self.core.tick(self.now)
                self.path.append(np.array(position))
                begin = begin if moved else self.now
                moved = True
                # The state of before, as a robot measures it.
                q, v = self.path[-2], self.path[-2] - self.path[-3]
                a = v - (self.path[-3] - self.path[-4]) if len(self.path) > 3 else v
                wanted = [self.wanted(one, begin, self.now - late) for late in (self.period, 0)]
                if state in ("running", "starved"):
                    rows.append((q, v, a, *wanted, self.path[-1]))
                if state not in ("running", "starved"):
                    break
            if rows and state not in ("running", "starved"):
                break
        return Ticks(self.axes, *map(np.stack, zip(*rows, strict=True)))

    def wanted(self, one: np.ndarray, begin: int, now: int) -> np.ndarray:
        """By numpy's own interpolation, inside the limits of position."""
        times = np.arange(len(one)) * self.step
        here = np.array([np.interp(now - begin, times, column) for column in one.T])
        return np.clip(here, self.axes.low, self.axes.high)


def flat(ticks: Ticks) -> tuple[Axes, list[np.ndarray]]:
    """All of them side by side."""
    count = len(ticks.q)
    axes = Axes(*(np.tile(getattr(ticks.axes, n), count) for n in Axes.__dataclass_fields__))
    names = ("q", "v", "a", "before", "target", "found")
    return axes, [getattr(ticks, name).ravel() for name in names]


def check(ticks: Ticks) -> dict[str, int]:
    """Every tick beside the reference; returns how many commands were what."""
    axes, (q, v, a, before, target, found) = flat(ticks)
    grain = 1e-14 * (1 + np.abs(q))
    next_v, next_a = found - q, found - q - v
    slack = 1e-6
    assert (found >= axes.low).all()
    assert (found <= axes.high).all()
    assert (np.abs(next_v) <= axes.V * (1 + slack) + grain).all()
    assert (np.abs(next_a) <= axes.A * (1 + slack) + 4 * grain).all()
    assert (np.abs(next_a - a) <= axes.J * (1 + slack) + 8 * grain).all()

    def can_stop(acceleration: np.ndarray, room: np.ndarray) -> np.ndarray:
        """Whether what follows stays inside the limits, but for ``room`` (of a robot's reach)."""
        end = stop(q + v + acceleration, v + acceleration, acceleration, axes)
        inside = (end.lowest >= axes.low - room) & (end.highest <= axes.high + room)
        return inside & (end.fastest <= axes.V * (1 + slack) + grain)

    # What rounding of differences makes of a stop that takes a hundred ticks.
    fuzz = 1e5 * grain + 1e-7 * (axes.high - axes.low)
    assert can_stop(next_a, fuzz).all()

    least = np.maximum.reduce([a - axes.J, -axes.A, -axes.V - v])
    most = np.minimum.reduce([a + axes.J, axes.A, axes.V - v])
    moves = np.clip(target - before, -axes.V, axes.V)

    def passes_by(acceleration: np.ndarray) -> np.ndarray:
        """Where it would rest relative to a target that goes on as it moves."""
        there = q + v + acceleration - target
        return stop(there, v + acceleration - moves, acceleration, axes).rest

    step = NEAR * np.maximum(most - least, 0.0) + 8 * grain
    on_target = np.abs(found - target) <= 1e-9 * (axes.high - axes.low) + grain
    up, down = next_a + step, next_a - step
    # Nearer from below is past it, beyond what a tick may choose, or cannot be stopped any more.
    not_low = (up >= most) | (passes_by(up) >= -fuzz) | ~can_stop(up, -fuzz)
    not_high = (down <= least) | (passes_by(down) <= fuzz) | ~can_stop(down, -fuzz)
    forced = least > most
    wrong = ~(on_target | forced | (not_low & not_high))
    # A path that is inside every limit is followed exactly.
    onto = target - q - v
    close = np.abs(q - before) <= np.where(np.isfinite(axes.J), axes.J / 8, 1e-9 * axes.V)
    admissible = close & (np.abs(onto) <= 0.9 * axes.A) & (np.abs(v + onto) <= 0.9 * axes.V)
    admissible &= np.abs(onto - a) <= 0.9 * axes.J
    nearest = np.clip(onto, np.minimum(least, most), most)
    admissible &= can_stop(nearest, -0.01 * (axes.high - axes.low))
    return {
        "ticks": len(q),
        "on target": int(on_target.sum()),
        "admissible": int(admissible.sum()),
        "missed": int((admissible & ~on_target).sum()),
        "held back": int(wrong.sum()),
        "forced": int(forced.sum()),
        "at a limit": int((~can_stop(np.where(onto > 0, most, least), fuzz) & ~forced).sum()),
    }


def drive(seed: int, least: int) -> dict[str, int]:
    """Until so many ticks of axes were checked, with and without jerk."""
    rng, total = np.random.default_rng(seed), {"ticks": 0}
    while total["ticks"] < least:
        for jerky in (True, False):
            for name, count in check(Arm(rng, jerky).drive(60)).items():
                total[name] = total.get(name, 0) + count
    return total


def test_commands_under_jerk_are_those_of_a_reference_clamp() -> None:
    found = drive(51, 12_000)
    assert found["missed"] == found["held back"] == 0, found
    assert min(found["admissible"], found["at a limit"]) > 500, found


@pytest.mark.soak
def test_100000_commands_under_jerk_are_those_of_a_reference_clamp() -> None:
    found = drive(52, 100_000)
    print(found)
    assert found["missed"] == found["held back"] == 0, found


def fastest_stop(v: float, a: float, A: float, J: float) -> float:
    """The least way to a rest, never backwards, by linear programming over all accelerations."""
    ticks = 90
    sums = np.tril(np.ones((ticks, ticks)))
    differences = np.eye(ticks) - np.eye(ticks, k=-1)
    first = np.zeros(ticks)
    first[0] = a
    bounds = np.concatenate([np.full(ticks, v), J + first, J - first])
    rows = np.concatenate([-sums, differences, -differences])
    ends = np.stack([sums[-1], np.eye(ticks)[-1]])
    found = linprog(
        np.arange(ticks, 0, -1.0), rows, bounds, ends, [-v, 0.0], bounds=[(-A, A)] * ticks
    )
    assert found.success, found.message
    return ticks * v + float(found.fun)


def test_the_references_stop_is_the_hardest_there_is() -> None:
    """Beside an optimum over every sequence of accelerations that keeps the limits."""
    rng = np.random.default_rng(61)
    for _ in range(40):
        A = float(rng.uniform(0.02, 0.2))
        J, v = A / float(rng.uniform(1, 15)), float(rng.uniform(0.2, 1.0))
        a = float(rng.uniform(-A, A) * 0.5)
        ramp = np.arange(1, 30)
        if v < np.maximum(-a - J * ramp, 0).sum() or a > 0.9 * v:
            continue  # it could not but turn back
        one = np.ones(1)
        axes = Axes(-one, one, one * 2, one * A, one * J)
        found = float(stop(0 * one, v * one, a * one, axes).rest[0])
        assert found == pytest.approx(fastest_stop(v, a, A, J), rel=1e-6, abs=1e-9)


def test_the_reference_can_fail() -> None:
    """A clamp that holds still, one that is a tick late, and one that does not look ahead."""
    rng = np.random.default_rng(71)
    ticks = Arm(rng, True).drive(60)
    ticks.found = ticks.q + ticks.v + hardest(ticks.v, ticks.a, ticks.axes.A, ticks.axes.J)
    assert check(ticks)["held back"] > 50
    ticks = Arm(rng, True).drive(60)
    ticks.target = ticks.before
    assert check(ticks)["held back"] > 50
    ticks = Arm(rng, True).drive(60)
    blind = np.clip(
        ticks.target - ticks.q - ticks.v, ticks.a - ticks.axes.J, ticks.a + ticks.axes.J
    )
    ticks.found = ticks.q + ticks.v + np.clip(blind, -ticks.axes.A, ticks.axes.A)
    with pytest.raises(AssertionError):
        check(ticks)


@pytest.mark.parametrize("rate", [50.0, 200.0, 1000.0])
@pytest.mark.parametrize("kind", ["velocity", "acceleration", "jerk"])
def test_a_path_inside_the_limits_is_followed_exactly(kind: str, rate: float) -> None:
    """From rest to rest in a second, by a quintic that uses two thirds of each limit."""
    ticks = int(rate)
    s = np.linspace(0, 1, ticks + 1)
    path = np.ascontiguousarray((10 * s**3 - 15 * s**4 + 6 * s**5)[:, None])
    limits = [[-5.0], [5.0], [1.5 * 1.875], [], []]
    if kind != "velocity":
        limits[3] = [1.5 * 5.7735]
    if kind == "jerk":
        limits[4] = [1.5 * 60.0]
    rates = {"tick_rate": rate, "policy_rate": rate, "most_steps": 2048.0}
    core: Any = _native.cpu_module().ExecutorCore(
        limits, {**rates, "stop_after": 0.1, "fault_after": 0.5}, [], [0.0]
    )
    now = 10**9
    assert core.submit(path.ctypes.data, *path.shape, now, now) == "accepted"
    found = [core.tick(now + round(1e9 / rate) * (k + 1))[4][0] for k in range(ticks + 1)]
    np.testing.assert_allclose(found, path[:, 0], atol=1e-12)
