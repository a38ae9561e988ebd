"""Collection: tasks by name, parallel work, one dataset."""

from pathlib import Path

import numpy as np
import pytest

from vlakern.data.lerobot import LeRobotDataset
from vlakern.errors import DatasetError, InputError
from vlakern.sim.collect import Plan, collect
from vlakern.sim.experts import Recipe
from vlakern.sim.metaworld import TASKS

PLAN = Plan(("reach-v3", "button-press-topdown-v3"), 1, 0, Recipe(), 32, 1)


def run(plan: Plan, root: Path, overwrite: bool = False):
    return collect(plan, root, overwrite=overwrite, watch=lambda items, _: items)


@pytest.mark.parametrize("change", [{"episodes": 0}, {"workers": 0}, {"image_size": -2}])
def test_bad_plan(change: dict):
    """Counts below one are refused by name."""
    values = {"episodes": 1, "workers": 1, "image_size": 32} | change
    with pytest.raises(InputError, match=next(iter(change))):
        Plan(("reach-v3",), seed=0, recipe=Recipe(), **values)


def test_dataset_does_not_depend_on_workers(tmp_path: Path):
    """One process and two write the same episodes, which are of the tasks asked for."""
    counts = run(PLAN, tmp_path / "one")
    run(Plan(PLAN.tasks, 1, 0, PLAN.recipe, 32, 2), tmp_path / "two")
    one, two = (LeRobotDataset(tmp_path / name) for name in ("one", "two"))
    assert one.num_episodes == two.num_episodes == 2
    assert one.fps == 80.0
    assert one.views == {"left": (32, 32), "right": (32, 32)}
    for i, task in enumerate(PLAN.tasks):
        a, b = one.episode(i), two.episode(i)
        assert a.task == TASKS[task].instruction
        assert counts[task].frames == len(a.states)
        assert counts[task].episodes == 1
        np.testing.assert_array_equal(a.states, b.states)
        np.testing.assert_array_equal(a.actions, b.actions)
        np.testing.assert_array_equal(one.frames(i, "right"), two.frames(i, "right"))


def test_existing_directory_is_kept(tmp_path: Path):
    """Nothing is collected into a directory that exists, unless told to replace it."""
    (tmp_path / "kept").write_text("x")
    with pytest.raises(DatasetError, match="exists"):
        run(PLAN, tmp_path)
    assert (tmp_path / "kept").read_text() == "x"


def test_failure_leaves_nothing(tmp_path: Path):
    """A task that cannot be solved ends the run, and no dataset is left."""
    hopeless = Plan(("reach-v3",), 1, 0, Recipe(limit=2), 32, 1)
    with pytest.raises(InputError, match="failed 20 times"):
        run(hopeless, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []
