"""A simulator behind absolute commands gets back the numbers that its controller takes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from vlakern.errors import InputError
from vlakern.sim.commands import CommandedEnv
from vlakern.sim.metaworld import MetaWorldEnv, Step
from vlakern.space import (
    ActionSpace,
    Frame,
    Normalizer,
    VectorStats,
    embodiment,
    slot_map,
)
from vlakern.space.controller import NativeControl
from vlakern.types import Observation

SLOTS, SAWYER = slot_map("unified-200"), embodiment("metaworld_sawyer")


class Lagging:
    """A hand that goes half of the way to where it was commanded; keeps what it was told."""

    def __init__(self, width: int) -> None:
        self.told: list[np.ndarray] = []
        self.hand, self.point, self.closed = np.zeros(width), np.zeros(3), False
        self.hand[:3] = self.point[:] = (0.0, 0.6, 0.2)

    def reset(self, seed: int) -> None:
        self.told.clear()

    def state(self) -> np.ndarray:
        return self.hand.astype(np.float32)

    def observe(self) -> Observation:
        return Observation({"left": self.render("left")}, self.state(), "go")

    def render(self, view: str) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)

    def step(self, action: np.ndarray) -> Step:
        self.told.append(action)
        self.point += 0.01 * np.clip(action[:3], -1, 1)
        self.hand[:3] += 0.5 * (self.point - self.hand[:3])
        return Step(len(self.told) == 3, self.state())

    def close(self) -> None:
        self.closed = True


def test_a_recorded_chunk_gives_back_its_numbers_chunk_after_chunk() -> None:
    """However far the hand lags, because training adds steps up from the measured hand, too."""
    env, control = Lagging(4), NativeControl(SAWYER, SLOTS)
    commanded = CommandedEnv(env, control)
    native = np.random.default_rng(0).uniform(-1, 1, size=(3, 5, 4))
    commanded.reset(0)
    for chunk in native:
        state = commanded.observe().state
        for command in control.to_commands(chunk, state[None].astype(np.float64)):
            commanded.step(command)
    np.testing.assert_allclose(env.told, native.reshape(-1, 4), atol=2e-5)
    assert np.abs(env.hand[:3] - env.point).max() > 1e-3


def test_a_command_out_of_reach_is_clipped_and_approached() -> None:
    """Step by step from what was reached, not from what was asked for."""
    env = Lagging(4)
    commanded = CommandedEnv(env, NativeControl(SAWYER, SLOTS))
    commanded.observe()
    goal = np.array([0.025, 0.6, 0.2, 1.0])
    outcomes = [commanded.step(goal).success for _ in range(4)]
    np.testing.assert_allclose([row[0] for row in env.told], [1, 1, 0.5, 0], atol=1e-4)
    assert outcomes == [False, False, True, False]


def test_a_step_from_the_achieved_pose_reads_the_state_each_time() -> None:
    """As robosuite's OSC does: a hand that lags is asked for the rest again."""
    env = Lagging(8)
    env.hand[6] = 1.0
    commanded = CommandedEnv(env, NativeControl(embodiment("robosuite_panda"), SLOTS))
    goal = np.array([0.02, 0.6, 0.2, 0.0, 0.0, 0.0, -1.0])
    for _ in range(2):
        left = (goal[0] - env.hand[0]) / 0.05
        commanded.step(goal)
        np.testing.assert_allclose(env.told[-1], [left, 0, 0, 0, 0, 0, -1], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c[:3], r"action is float64\[3\], metaworld_sawyer has"),
        (lambda c: c * np.nan, r"action number 0 \(slot 'right_eef_position'\) is not finite"),
    ],
)
def test_what_is_no_command_never_reaches_the_simulator(
    change: Callable[[np.ndarray], np.ndarray], sentence: str
) -> None:
    """The sentence names the slot."""
    env = Lagging(4)
    commanded = CommandedEnv(env, NativeControl(SAWYER, SLOTS))
    with pytest.raises(InputError, match=sentence):
        commanded.step(change(np.zeros(4)))
    assert not env.told
    commanded.close()
    assert env.closed


def test_the_simulated_hand_goes_where_it_is_commanded() -> None:
    """Meta-World itself: five centimetres to the side, held until the hand is there."""
    commanded = CommandedEnv(MetaWorldEnv("reach-v3", views=()), NativeControl(SAWYER, SLOTS))
    commanded.reset(0)
    start = commanded.observe().state
    goal = start + np.array([0.05, 0.0, 0.05, 0.0], np.float32)
    for _ in range(40):
        commanded.step(goal)
    reached = commanded.observe().state
    commanded.close()
    assert np.abs(reached[:3] - goal[:3]).max() < 0.012


@pytest.mark.parametrize("frame", ["world_relative", "world_delta"])
def test_an_experts_episode_is_replayed_through_a_frame(frame: Frame) -> None:
    """Encoded, decoded and commanded in chunks of 8, every state is the original's to fp32."""
    control = NativeControl(SAWYER, SLOTS)
    units = VectorStats.units(SLOTS.names())
    plain = Normalizer("state", "none", units), Normalizer("action", "none", units)
    space = ActionSpace(SAWYER, SLOTS, SLOTS, frame, *plain)
    env, actions, states = MetaWorldEnv("drawer-open-v3", views=()), [], []
    env.reset(1_000_000)
    for _ in range(40):
        actions.append(env.expert_action())
        env.step(actions[-1])
        states.append(env.state())
    replayed = CommandedEnv(env, control)
    replayed.reset(1_000_000)
    for begin in range(0, 40, 8):
        state = replayed.observe().state[None]
        commands = control.to_commands(np.stack(actions[begin : begin + 8]), state)
        x = torch.from_numpy(space.encode(commands, state[0]))
        for t, command in enumerate(space.decode(x[None], state)[0], start=begin):
            replayed.step(command)
            np.testing.assert_allclose(env.state(), states[t], atol=1e-5)
    replayed.close()
