"""The simulated robot: scenes by number, actions by the endpoint, videos that say nothing."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from vlakern.blind.operator import SimulatedRobot
from vlakern.errors import StudyError
from vlakern.types import Observation


class Arm:
    """Succeeds after as many steps as its scene says."""

    def __init__(self) -> None:
        self.scene = self.steps = 0

    def reset(self, seed: int) -> None:
        self.scene, self.steps = seed, 0

    def observe(self) -> Observation:
        return Observation({"front": self.render("front")}, np.zeros(2, np.float32), "")

    def render(self, view: str) -> np.ndarray:
        return np.full((32, 32, 3), self.steps % 256, np.uint8)

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        return type("Outcome", (), {"success": self.steps >= self.scene})

    def close(self) -> None:
        pass


class Asked:
    """A client that remembers what it was asked."""

    def __init__(self) -> None:
        self.messages: list[Mapping[str, Any]] = []

    def infer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self.messages.append(message)
        return {"actions": np.zeros((8, 2), np.float32)}


def robot(client: Asked) -> SimulatedRobot:
    return SimulatedRobot(lambda task: Arm(), client, 4, 20.0, "front")  # pyright: ignore[reportArgumentType]


def test_a_trial_ends_with_success_or_time() -> None:
    """Five steps need two chunks of four; forty steps are beyond a second at 20 Hz."""
    client = Asked()
    made = robot(client).trial("reach", "go there", "5", 1.0)
    assert made.success
    assert len(client.messages) == 2
    assert client.messages[0]["prompt"] == "go there"
    assert b"ftyp" in made.video[:12]
    assert not robot(client).trial("reach", "go there", "40", 1.0).success


def test_noise_is_matched_between_models() -> None:
    """The same task, scene and call have the same seed, whoever answers; calls differ."""
    one, two = Asked(), Asked()
    robot(one).trial("reach", "go", "9", 1.0)
    robot(two).trial("reach", "go", "9", 1.0)
    seeds = [message["seed"] for message in one.messages]
    assert seeds == [message["seed"] for message in two.messages]
    assert len(set(seeds)) == len(seeds) == 3


def test_a_condition_in_words_is_no_scene() -> None:
    """A simulator takes numbers."""
    with pytest.raises(StudyError, match="'drawer left' is no scene of a simulator"):
        robot(Asked()).trial("reach", "go", "drawer left", 1.0)
