"""The policies inside the package look at their pictures."""

import dataclasses

import numpy as np
import pytest

import vlakern
from vlakern.infer.policy import shipped_policies
from vlakern.sim.metaworld import MetaWorldEnv
from vlakern.types import Observation


def scenes(policy: vlakern.Policy, task: str, count: int) -> list[Observation]:
    """What the robot sees at the start of the first ``count`` evaluation episodes."""
    env = MetaWorldEnv(task, views=policy.views, image_size=policy.image_size)
    found = []
    for seed in range(count):
        env.reset(seed)
        found.append(env.observe())
    env.close()
    return found


@pytest.mark.parametrize("name", shipped_policies())
@pytest.mark.parametrize("task", ["reach-v3", "push-v3"])
def test_another_picture_is_another_plan(name: str, task: str) -> None:
    """With state, words and noise equal, another scene's pictures move the actions visibly."""
    policy = vlakern.load(name, device="cpu")
    seen = scenes(policy, task, 5)
    asked = [dataclasses.replace(seen[0], images=one.images) for one in seen]
    first, *others = (chunk.actions for chunk in policy.act_batch(asked, [7] * len(asked)))
    moved = [float(np.abs(other - first).mean()) for other in others]
    assert np.median(moved) > 0.02, f"mean change of an action by another picture: {moved}"
