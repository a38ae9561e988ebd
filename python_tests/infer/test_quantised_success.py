"""int8 succeeds as often as the default dtype on the policy that ships."""

import functools

import pytest

import vlakern
from vlakern.sim.metaworld import CONTROL_RATE, MetaWorldEnv
from vlakern.sim.metaworld_tasks import task_names
from vlakern.sim.rollout import Plan, RolloutResult, rollout

NAME = "metaworld-small"
POINTS = 0.05


def driven(dtype: str, tasks: tuple[str, ...], episodes: int) -> RolloutResult:
    """Episodes of each task in the same scenes, whatever the dtype."""
    policy = vlakern.load(NAME, device="cpu", dtype=dtype)
    make = functools.partial(MetaWorldEnv, views=policy.views, image_size=policy.image_size)
    plan = Plan(
        tasks=tasks,
        episodes=episodes,
        seed=0,
        batch=10,
        max_steps=300,
        video="none",
        control_rate=CONTROL_RATE,
    )
    return rollout(plan, policy, make)


def test_int8_opens_drawer_and_door() -> None:
    """One episode each of the tasks that never fail."""
    result = driven("int8", ("drawer-open-v3", "door-open-v3"), 1)
    assert result.successes == 2


@pytest.mark.soak
def test_int8_is_not_worse_by_more_than_five_points() -> None:
    """200 episodes each; the numbers and their Wilson intervals are printed."""
    found = {dtype: driven(dtype, task_names("mw5"), 40) for dtype in ("fp32", "int8")}
    for dtype, result in found.items():
        low, high = result.wilson95
        print(f"{dtype}: {result.successes}/{len(result.episodes)}, {low:.3f} to {high:.3f}")
    rates = {dtype: one.successes / len(one.episodes) for dtype, one in found.items()}
    assert rates["int8"] >= rates["fp32"] - POINTS, rates
