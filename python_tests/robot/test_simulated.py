"""A simulator goes on at its own rate, towards the newest command, and says what went wrong."""

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import vlakern
from vlakern.errors import ConfigError
from vlakern.ops import _native
from vlakern.robot.executor import Command, Limits
from vlakern.robot.simulated import RealtimeSimulator
from vlakern.types import Observation

pytestmark = pytest.mark.skipif(_native.missing() is not None, reason="no native module")


class Point:
    """A hand that does what it is told; solved beyond x = 0.05 m."""

    def __init__(self) -> None:
        self.x, self.closed = np.array([0.0, 0.6, 0.2]), False

    def reset(self, seed: int) -> None:
        self.x[0] = 0.0

    def hand_range(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array([-0.5, 0.4, 0.05]), np.array([0.5, 1.0, 0.5])

    def state(self) -> np.ndarray:
        return np.array([*self.x, 1.0], np.float32)

    def observe(self) -> Observation:
        return Observation({}, self.state(), "go")

    def step(self, action: np.ndarray) -> Any:
        assert np.abs(action).max() <= 1
        self.x += 0.01 * action[:3]
        return SimpleNamespace(success=self.x[0] > 0.05)

    def close(self) -> None:
        self.closed = True


def world(make: Any, rate: float = 50.0) -> RealtimeSimulator:
    control = vlakern.load("metaworld-small", device="cpu").control
    return RealtimeSimulator(make, control, 0, rate, 100)


def test_it_goes_on_towards_the_newest_command() -> None:
    """At most a centimetre a step, and not before the first command."""
    point = Point()
    arm = world(lambda: point)
    np.testing.assert_allclose(arm.position(), [0, 0.6, 0.2, -1], atol=1e-6)
    assert arm.limits == Limits(
        [-0.5, 0.4, 0.05, -1.0], [0.5, 1.0, 0.5, 1.0], [0.5, 0.5, 0.5, 2000.0]
    )
    assert arm.held == (3,)
    assert arm.observe() is not None
    time.sleep(0.1)
    assert arm.steps == 0
    goal = np.array([0.07, 0.6, 0.2, -1.0])
    arm.send(Command(1, time.monotonic_ns(), 1, "running", goal, np.zeros(4)))
    end = time.monotonic() + 10
    while not arm.over and time.monotonic() < end:
        time.sleep(0.01)
    arm.close()
    assert arm.success
    assert arm.steps == 6
    assert point.closed


def test_a_look_is_there_as_soon_as_it_is_taken() -> None:
    """Who asks waits for it, and need not ask again and again, which would make it older."""
    arm = world(Point, 5.0)
    ages = []
    for _ in range(4):
        seen = arm.observe()
        if seen is not None:
            ages.append((time.monotonic_ns() - seen.time_ns) * 1e-9)
    arm.close()
    assert len(ages) >= 3
    assert min(ages[1:]) < 0.1


def test_what_the_simulator_raises_is_heard() -> None:
    def broken() -> Any:
        raise ConnectionError("no renderer")

    with pytest.raises(ConnectionError, match="no renderer"):
        world(broken)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="expected control steps a second above 0"):
        world(Point, rate)
