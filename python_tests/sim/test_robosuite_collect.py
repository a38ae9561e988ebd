"""Collection by several arms: a dataset each, a mixture of all, and a replay that succeeds.

What needs robosuite carries its marker; the refusals run everywhere.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlakern.data.lerobot import LeRobotDataset
from vlakern.data.mixture import read_mixture
from vlakern.errors import InputError
from vlakern.sim.commands import CommandedEnv
from vlakern.sim.robosuite import RobosuiteEnv
from vlakern.sim.robosuite_collect import (
    RECIPE,
    Plan,
    collect,
    demonstrate,
    folders,
    robot_name,
    seed_of,
)
from vlakern.sim.robosuite_setup import ARMS, TASKS
from vlakern.space import ActionSpace, Frame, Normalizer, VectorStats, embodiment, slot_map
from vlakern.space.controller import NativeControl

USUAL: dict[str, Any] = {
    "arms": "Panda,IIWA",
    "tasks": "Lift",
    "views": "robot0_eye_in_hand",
    "episodes": 1,
    "seed": 0,
    "noise": 0.3,
    "image_size": 32,
    "workers": 1,
}


@pytest.mark.robosuite
def test_a_dataset_for_each_arm_and_a_mixture_of_them(tmp_path: Path) -> None:
    """Robot, rate, sentence and views are declared; what is recorded is the expert's wish, which
    the controller can do; the same plan gives the same numbers again."""
    plan = Plan(**USUAL)
    counts = collect(plan, tmp_path / "a", overwrite=False, watch=lambda items, _: items)
    assert list(counts) == ["Lift-Panda", "Lift-IIWA"]
    mixture = read_mixture(tmp_path / "a" / "mixture.toml")
    sets = [LeRobotDataset(Path(entry.path)) for entry in mixture.datasets]
    assert [one.robot_type for one in sets] == ["robosuite_panda", "robosuite_iiwa"]
    for one, count in zip(sets, counts.values(), strict=True):
        assert (one.fps, one.views) == (20.0, {"robot0_eye_in_hand": (32, 32)})
        episode = one.episode(0)
        assert episode.task == "pick up the red cube"
        assert (count.episodes, count.frames) == (1, len(episode.states))
        assert np.abs(episode.actions[:, :6]).max() <= 1.0
        assert set(np.unique(episode.actions[:, 6])) == {-1.0, 1.0}
    changed: dict[str, Any] = USUAL | {"arms": "Panda", "views": "agentview"}
    alone = Plan(**changed)
    collect(alone, tmp_path / "b", overwrite=False, watch=lambda items, _: items)
    np.testing.assert_array_equal(
        LeRobotDataset(tmp_path / "b").episode(0).actions, sets[0].episode(0).actions
    )


@pytest.mark.robosuite
@pytest.mark.parametrize("frame", ["world_delta", "eef_relative"])
@pytest.mark.parametrize("arm", ["Sawyer", "UR5e"])
def test_a_demonstration_replayed_through_a_frame_stacks(arm: str, frame: Frame) -> None:
    """Encoded in chunks of 8 into the map of six-number rotations, decoded and commanded."""
    env = RobosuiteEnv("Stack", arm)
    calm = replace(RECIPE, noise=0.0, drift=0.0)
    shown = demonstrate(env, calm, 5)
    assert shown is not None
    slots = slot_map("unified-200-6d")
    robot = replace(embodiment(robot_name(arm)), slot_map=slots.name)
    units = VectorStats.units(slots.names())
    plain = Normalizer("state", "none", units), Normalizer("action", "none", units)
    space, control = ActionSpace(robot, slots, slots, frame, *plain), NativeControl(robot, slots)
    replayed, solved = CommandedEnv(env, control), False
    replayed.reset(5)
    for begin in range(0, len(shown.actions), 8):
        state, part = replayed.observe().state[None], slice(begin, begin + 8)
        commands = control.to_commands(shown.actions[part], shown.states[part])
        x = torch.from_numpy(space.encode(commands, state[0]))
        for command in space.decode(x[None], state)[0]:
            solved = replayed.step(command).success or solved
    assert solved
    replayed.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"episodes": 0}, "episodes is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"image_size": -1}, "image_size is -1"),
        ({"arms": "Panda,Jaco"}, "arm 'Jaco'"),
        ({"tasks": "Fly"}, "task 'Fly'"),
        ({"views": "moon"}, "view 'moon'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(change: dict[str, Any], words: str) -> None:
    """By name, before anything is built."""
    with pytest.raises(InputError, match=words):
        Plan(**USUAL | change)


def test_no_two_episodes_share_a_seed_and_none_is_for_evaluation() -> None:
    """Over arms, tasks, episodes and attempts."""
    seeds = {
        seed_of(seed, arm, task, episode, attempt)
        for seed in (0, 1)
        for arm in ARMS
        for task in TASKS
        for episode in (0, 1, 99_999)
        for attempt in (0, 99)
    }
    assert len(seeds) == 2 * len(ARMS) * len(TASKS) * 3 * 2
    assert min(seeds) >= 1_000_000
    with pytest.raises(InputError, match="seed -1"):
        seed_of(-1, "Panda", "Lift", 0, 0)


def test_one_arm_takes_the_directory_and_several_share_it(tmp_path: Path) -> None:
    """As a policy of one robot and policies of several do."""
    assert folders(tmp_path, ["Panda"]) == {"Panda": tmp_path}
    assert folders(tmp_path, ["Panda", "UR5e"]) == {
        "Panda": tmp_path / "robosuite_panda",
        "UR5e": tmp_path / "robosuite_ur5e",
    }
