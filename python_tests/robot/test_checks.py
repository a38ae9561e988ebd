"""A loop says in one sentence what it cannot use, and the robot has not moved then."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vlakern.errors import ConfigError, InputError, Unsupported, VlakernError
from vlakern.ops import _native
from vlakern.robot import ExecutorConfig, Limits, Loop, LoopConfig, SimulatedArm
from vlakern.robot.ports import Seen
from vlakern.types import ActionChunk, ActionPrefix, Observation

pytestmark = pytest.mark.skipif(_native.missing() is not None, reason="no native module")

RATES = ExecutorConfig(20.0, 200.0)


class Policy:
    """Stays where the arm is; how it answers can be replaced."""

    def __init__(self, answer: Callable[..., Any] | None = None) -> None:
        self.answer, self.asked = answer, list[ActionPrefix | None]()

    def act(self, observation: Observation, *, prefix: ActionPrefix | None = None) -> ActionChunk:
        self.asked.append(prefix)
        if self.answer is not None:
            return self.answer(observation, prefix)
        return ActionChunk(np.tile(observation.state, (16, 1)))


class Unaware:
    def act(self, observation: Observation) -> ActionChunk:
        return ActionChunk(np.tile(observation.state, (16, 1)))


class Wrong(SimulatedArm):
    """Gives looks of another kind."""

    kind: Callable[[Seen], Any]

    def observe(self) -> Any:
        seen = super().observe()
        return None if seen is None else self.kind(seen)


def loop(robot: Any, policy: Any, patience: float = 30.0, **options: Any) -> Loop:
    limits = Limits([-1.0] * 2, [1.0] * 2, [1.0] * 2)
    return Loop(robot, policy, limits, RATES, LoopConfig(8, patience=patience, **options))


def arm() -> SimulatedArm:
    return SimulatedArm(start=(0.0, 0.5))


@pytest.mark.parametrize(
    ("robot", "policy", "options", "words"),
    [
        (None, Policy(), {}, "NoneType, has no observe and no position and no send; give an"),
        (arm(), "metaworld-small", {}, "the policy, a str, has no act; give what vlakern.load"),
        (arm(), Unaware(), {"prefix": True}, "act of the policy, a Unaware, takes no prefix"),
    ],
)
def test_parts_that_are_none(robot: Any, policy: Any, options: dict[str, Any], words: str) -> None:
    """They are refused when the loop is made."""
    with pytest.raises(InputError, match=words):
        loop(robot, policy, **options)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda o, p: np.zeros((16, 2)), r"act gave ndarray, expected an ActionChunk"),
        (lambda o, p: ActionChunk(np.zeros((16, 7))), r"gave actions \[16, 7\], .* \[steps, 2\]"),
        (lambda o, p: ActionChunk(np.zeros(2)), r"gave actions \[2\]"),
        (lambda o, p: ActionChunk(np.zeros((0, 2))), r"gave actions \[0, 2\]"),
    ],
)
def test_answers_that_are_no_chunks(answer: Callable[..., Any], words: str) -> None:
    """They are found while the policy warms up."""
    robot = arm()
    with pytest.raises(InputError, match=words):
        loop(robot, Policy(answer)).run(1.0)
    assert not robot.sent


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (lambda seen: seen.observation, r"observe gave Observation, expected Seen"),
        (lambda seen: Seen(seen.observation, time.time_ns()), r"their clock is not time.monotonic"),
    ],
)
def test_looks_that_are_none(kind: Callable[[Seen], Any], words: str) -> None:
    robot = Wrong(start=(0.0, 0.5))
    robot.kind = kind
    with pytest.raises(VlakernError, match=words):
        loop(robot, Policy(), patience=1.0).run(1.0)
    assert not robot.sent


def test_a_prefix_is_tried_before_the_robot_moves() -> None:
    """Its time counts for the delay, and what refuses it says so while the robot rests."""

    def refuses(observation: Observation, prefix: ActionPrefix | None) -> ActionChunk:
        if prefix is not None:
            raise Unsupported(f"no prefix of the form {prefix.form}")
        return ActionChunk(np.tile(observation.state, (16, 1)))

    robot = arm()
    with pytest.raises(Unsupported, match="form cheap"):
        loop(robot, Policy(refuses), prefix=True, form="cheap").run(1.0)
    assert not robot.sent

    def slow(observation: Observation, prefix: ActionPrefix | None) -> ActionChunk:
        time.sleep(0.0 if prefix is None else 0.45)
        return ActionChunk(np.tile(observation.state, (16, 1)))

    policy = Policy(slow)
    with pytest.raises(ConfigError, match="d <= s <= H - d"):
        loop(robot, policy, prefix=True).run(1.0)
    assert not robot.sent
    assert policy.asked[0] is None
    assert policy.asked[-1] is not None
    assert policy.asked[-1].frozen >= 1


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_times_that_are_none(seconds: float) -> None:
    with pytest.raises(InputError, match="expected more than 0, or None for no end"):
        loop(arm(), Policy()).run(seconds)
