"""The newest look wins, old ones are not used, and a simulated arm is what it says."""

import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlakern.errors import ConfigError
from vlakern.robot.executor import Command
from vlakern.robot.ports import Newest, Rig, Robot, Seen, SimulatedArm, Trouble
from vlakern.types import Observation

MS = 1_000_000
NOTHING = Observation({}, np.zeros(1, np.float32), "wait")


def at(time_ns: int) -> Seen:
    return Seen(NOTHING, time_ns)


def clock(now: list[int]) -> Callable[[], int]:
    return lambda: now[0]


@given(st.lists(st.tuples(st.integers(-300, 300), st.booleans(), st.integers(0, 150)), max_size=40))
def test_what_is_given_out_is_fresh_and_newer_than_all_before(
    events: list[tuple[int, bool, int]],
) -> None:
    """Whatever the order, duplicates and clocks that jump; every look is accounted for."""
    now, given_out, put = [1000 * MS], [], 0
    newest = Newest(0.1, clock(now))
    for offset, look, pause in events:
        now[0] += pause * MS
        newest.put(at(now[0] + offset * MS))
        put += 1
        if look and (seen := newest.take(patience=0)) is not None:
            assert 0 <= now[0] - seen.time_ns <= 100 * MS
            given_out.append(seen.time_ns)
    assert given_out == sorted(set(given_out))
    left = put - len(given_out) - sum(newest.dropped.values())
    assert left in (0, 1)


def test_looks_are_dropped_for_their_own_reason() -> None:
    now = [1000 * MS]
    newest = Newest(0.1, clock(now))
    for offset in (-50, -60, -50, -40, 10):
        newest.put(at(now[0] + offset * MS))
    assert newest.dropped == {"out_of_order": 2, "future": 1, "stale": 0, "replaced": 1}
    assert newest.take(after_ns=now[0], patience=0) is None
    now[0] += 61 * MS
    assert newest.take(patience=0) is None
    assert newest.dropped["stale"] == 1
    newest.put(at(now[0]))
    seen = newest.take(after_ns=now[0], patience=0)
    assert seen is not None
    assert seen.time_ns == now[0]
    assert newest.take(patience=0) is None


def command(tick: int, position: float) -> Command:
    values = np.array([position])
    return Command(tick, tick * 5 * MS, 1, "running", values, np.zeros(1))


def test_a_joint_follows_as_its_equation_says() -> None:
    """q" = ω²(1 - q) - 2ω·q' in 100,000 small steps of Euler's, from rest."""
    arm = SimulatedArm((0.0,), frequency=2.0)
    for tick in range(1, 42):
        arm.send(command(tick, 1.0))
    q, v, omega, dt = 0.0, 0.0, 4 * np.pi, 0.2 / 100_000
    for _ in range(100_000):
        q, v = q + dt * v, v + dt * (omega**2 * (1 - q) - 2 * omega * v)
    assert arm.position()[0] == pytest.approx(q, abs=1e-4)


def looks(trouble: Trouble, seed: int, count: int = 300) -> list[int]:
    """Times of what arrives, from 0 on, in order."""
    arm, found, now = SimulatedArm((0.0,), trouble=trouble, seed=seed), [], 0
    for _ in range(count):
        now += 10 * MS
        arm._wire.push(at(now), now)
        seen = arm._wire.pop(now)
        found += [] if seen is None else [seen.time_ns]
    return found


def test_trouble_is_what_was_ordered_and_repeats() -> None:
    assert looks(Trouble(), 0) == [10 * MS * k for k in range(1, 301)]
    lossy = looks(Trouble(loss=0.2), 1)
    assert 0.7 < len(lossy) / 300 < 0.9
    assert lossy == looks(Trouble(loss=0.2), 1) != looks(Trouble(loss=0.2), 2)
    twice = looks(Trouble(duplicates=0.3), 1)
    assert len(set(twice)) < len(twice)
    mixed = looks(Trouble(reordering=0.3), 1)
    assert mixed != sorted(mixed)
    assert looks(Trouble(latency=0.05), 1)[:2] == [10 * MS, 20 * MS]
    assert len(looks(Trouble(latency=0.05), 1)) == 295
    with pytest.raises(ConfigError, match="trouble"):
        Trouble(loss=1.2)
    with pytest.raises(ConfigError, match="shares of 0 to 1"):
        Trouble(loss=float("nan"))
    with pytest.raises(ConnectionError):
        SimulatedArm((0.0,), trouble=Trouble(observe_fault=1.0)).observe()
    with pytest.raises(ConnectionError):
        SimulatedArm((0.0,), trouble=Trouble(send_fault=1.0)).send(command(1, 0.0))


class Picture:
    def __init__(self, taken: int) -> None:
        self._taken = taken

    def read(self) -> tuple[np.ndarray, int]:
        return np.zeros((4, 4, 3), np.uint8), self._taken


class Joints(SimulatedArm):
    def state(self) -> tuple[np.ndarray, int]:
        return self.position().astype(np.float32), 7


def test_a_rig_is_as_old_as_its_oldest_part() -> None:
    rig = Rig(Joints((0.5,)), {"left": Picture(9), "right": Picture(5)}, "wave")
    assert isinstance(rig, Robot)
    seen = rig.observe()
    assert (seen.time_ns, set(seen.observation.images)) == (5, {"left", "right"})
    rig.send(command(1, 0.7))
    assert rig.position()[0] == 0.7
    direct = SimulatedArm((0.0,)).observe()
    assert direct is not None
    assert time.monotonic_ns() - direct.time_ns < 10**9
