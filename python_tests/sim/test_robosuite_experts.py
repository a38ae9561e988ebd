"""The Lift expert: it lifts with every arm, under any settings, and turns the hand on the way."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from vlakern.errors import InputError
from vlakern.sim.robosuite import ARMS, Osc, RobosuiteEnv
from vlakern.sim.robosuite_experts import LiftExpert, StackExpert, _aligned, expert_of
from vlakern.space.rotation import Rotation


def lifts(env: RobosuiteEnv, seed: int) -> bool:
    expert = LiftExpert(env)
    env.reset(seed)
    expert.begin()
    return any(env.step(expert.action()).success for _ in range(160))


@pytest.mark.robosuite
@pytest.mark.parametrize("arm", ARMS)
def test_lifts(arm: str):
    """The expert solves a seed that the recordings of the frames' proof do not use."""
    env = RobosuiteEnv(arm=arm)
    assert lifts(env, 7)
    env.close()


@pytest.mark.robosuite
@pytest.mark.parametrize("arm", ARMS)
def test_stacks(arm: str):
    """The red cube stands on the green one, and no hand holds it."""
    env = RobosuiteEnv("Stack", arm)
    expert = expert_of(env)
    assert isinstance(expert, StackExpert)
    env.reset(7)
    expert.begin()
    assert any(env.step(expert.action()).success for _ in range(200))
    scene = env.scene()
    assert scene.target is not None
    offset = scene.cube[:3] - scene.target[:3]
    assert np.abs(offset[:2]).max() < 0.03
    assert offset[2] == pytest.approx(0.045, abs=0.01)
    env.close()


@pytest.mark.robosuite
@pytest.mark.parametrize("osc", [Osc("delta", "world", "desired"), Osc("absolute")])
def test_any_settings(osc: Osc):
    """It aims at poses, so the controller's settings do not matter."""
    env = RobosuiteEnv(base_yaw=-0.5, osc=osc)
    assert lifts(env, 5)
    env.close()


def test_refusals():
    """Another task, and an action without a plan, are refused."""
    with pytest.raises(InputError, match="expected 'Lift'"):
        LiftExpert(cast(Any, SimpleNamespace(task="Stack")))
    with pytest.raises(InputError, match="expected 'Stack'"):
        StackExpert(cast(Any, SimpleNamespace(task="Lift")))
    with pytest.raises(InputError, match="begin"):
        LiftExpert(cast(Any, SimpleNamespace(task="Lift"))).action()


@pytest.mark.parametrize("quarter", range(4))
def test_alignment(quarter: int):
    """The hand points down with its fingers across a side of the cube, at most an eighth turn off,
    whichever of the cube's four equal sides is called the first."""

    def turned(axis: list[float]) -> Rotation:
        return Rotation.read(torch.tensor(axis, dtype=torch.float64), "axis_angle")

    down = turned([np.pi, 0.0, 0.0])
    hand = turned([0.1, -0.2, 0.3]) @ down
    fingers = hand.apply(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)).numpy()
    cube = turned([0.0, 0.0, 0.4 + quarter * np.pi / 2])
    aligned = _aligned(hand, fingers, cube)
    matrix = aligned.matrix().numpy()
    np.testing.assert_allclose(matrix[:, 2], [0.0, 0.0, -1.0], atol=1e-12)
    side = abs(float(matrix[:, 1] @ cube.matrix().numpy()[:, 0]))
    assert side == pytest.approx(round(side), abs=1e-9)
    assert float((aligned @ hand.inverse()).angle()) < np.pi / 4 + 0.25
