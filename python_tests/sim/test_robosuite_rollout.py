"""Which arms a policy may drive."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vlakern.errors import InputError
from vlakern.sim.robosuite_rollout import check_arms, make_env, pairs
from vlakern.space import Embodiment, embodiment

PANDA = embodiment("robosuite_panda")


def driver(robot: Embodiment) -> Any:
    return SimpleNamespace(name="p", robot=robot)


def test_every_task_on_every_arm() -> None:
    """The policy's own arm where none is named."""
    assert pairs("UR5e,Panda", "Lift,Stack", driver(PANDA)) == (
        ["UR5e", "Panda"],
        ("Lift-UR5e", "Stack-UR5e", "Lift-Panda", "Stack-Panda"),
    )
    assert pairs(None, "Lift", driver(PANDA)) == (["Panda"], ("Lift-Panda",))
    with pytest.raises(InputError, match=r"'so100', which is no arm.*Panda.*XArm7"):
        pairs(None, "Lift", driver(embodiment("so100")))


def test_an_arm_of_the_same_numbers_may_be_driven_and_another_not() -> None:
    """Joints may differ; what states, actions and the controller mean may not."""
    check_arms(driver(PANDA), ["Sawyer", "UR5e", "IIWA", "Kinova3", "XArm7"])
    assert PANDA.controller is not None
    other = replace(PANDA, controller=replace(PANDA.controller, position_scale=0.02))
    with pytest.raises(InputError, match=r"whose controller differs.*drive UR5e"):
        check_arms(driver(other), ["UR5e"])
    with pytest.raises(InputError, match="whose state differs"):
        check_arms(driver(embodiment("franka_panda")), ["Panda"])


@pytest.mark.robosuite
def test_the_environment_of_a_pair() -> None:
    """Task, arm, views and their size."""
    env = make_env("Stack-UR5e", views=("robot0_eye_in_hand",), image_size=32)
    env.reset(0)
    seen = env.observe()
    assert (env.task, env.arm) == ("Stack", "UR5e")
    assert {view: image.shape for view, image in seen.images.items()} == {
        "robot0_eye_in_hand": (32, 32, 3)
    }
    assert seen.instruction == "put the red cube on the green cube"
    assert seen.state.dtype == np.float32
    env.close()
