"""Statistics by level: each level is the merge of what is below it, and the choice is told."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlakern.data.stats import SlotStats
from vlakern.data.stats_tree import StatsLevels, StatsTree
from vlakern.errors import ConfigError, InputError

NAMES = ("hand_x", "gripper")
ROBOTS = ("panda", "ur5e")
TASKS = ("lift", "stack", "wipe")


def rows_of(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(1.0, 2.0, (count, 2))


def small_tree() -> StatsTree:
    """panda: lift 5 rows, stack 20; ur5e, which has no gripper: lift 10."""
    tree = StatsTree(NAMES)
    tree.add("panda", "lift", rows_of(5, 1))
    tree.add("panda", "stack", rows_of(20, 2))
    tree.add("ur5e", "lift", rows_of(10, 3), np.array([True, False]))
    return tree


@given(
    st.lists(
        st.tuples(st.sampled_from(ROBOTS), st.sampled_from(TASKS), st.integers(1, 900)), min_size=1
    ),
    st.randoms(use_true_random=False),
)
def test_a_level_is_the_merge_of_its_children(
    parts: list[tuple[str, str, int]], random: Any
) -> None:
    """Whatever order the rows came in: moments to 1e-12, all else the same bits."""
    batches = [(robot, task, rows_of(n, i)) for i, (robot, task, n) in enumerate(parts)]
    tree = StatsTree(NAMES)
    for robot, task, rows in random.sample(batches, len(batches)):
        tree.add(robot, task, rows)
    for embodiment, task in tree.known():
        flat = SlotStats(NAMES)
        for robot, work, rows in batches:
            if embodiment in (None, robot) and task in (None, work):
                flat.add(rows)
        found = tree.level(embodiment, task)
        assert found.rows == flat.rows
        expected = flat.summary()
        for name, value in found.summary().items():
            bound = 1e-11 if name in ("mean", "std") else 0.0
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=bound, err_msg=name)


def test_levels_that_exist() -> None:
    """All first, then embodiments, then tasks; a part without rows makes none."""
    tree = small_tree()
    tree.add("iiwa", "lift", rows_of(0, 0))
    tasks = [("panda", "lift"), ("panda", "stack"), ("ur5e", "lift")]
    assert tree.known() == [(None, None), ("panda", None), ("ur5e", None), *tasks]
    assert StatsTree(NAMES).known() == []


def test_presence_is_merged() -> None:
    """A slot is present in a level if any of its rows had it, and counted where it was."""
    tree = small_tree()
    assert tree.level("ur5e").result().present == (True, False)
    assert tree.level().result().present == ()
    assert tree.level().count.tolist() == [35, 25]


def test_a_level_is_a_copy() -> None:
    """Adding to what a level returned changes nothing in the tree."""
    tree = small_tree()
    tree.level("panda", "lift").add(rows_of(7, 9))
    assert tree.level("panda", "lift").rows == 5


@pytest.mark.parametrize(
    ("embodiment", "task", "at_least", "level", "rows"),
    [
        ("panda", "lift", 1, "task", 5),
        ("panda", "lift", 5, "task", 5),
        ("panda", "lift", 6, "embodiment", 25),
        ("panda", "lift", 26, "all", 35),
        ("panda", "wipe", 1, "embodiment", 25),
        ("iiwa", "lift", 1, "all", 35),
        ("ur5e", "lift", 11, "all", 35),
    ],
)
def test_the_most_specific_level_with_enough_rows(
    embodiment: str, task: str, at_least: int, level: str, rows: int
) -> None:
    """In the tree and in its results, which say which level it was."""
    tree = small_tree()
    stats, found = tree.find(embodiment, task, at_least)
    assert (found, stats.rows) == (level, rows)
    assert tree.levels().find(embodiment, task, at_least) == (stats.result(), level)


def test_too_few_rows_are_refused() -> None:
    """No level is taken that has fewer rows than asked for."""
    tree = small_tree()
    for holder in (tree, tree.levels()):
        with pytest.raises(InputError, match="together have 35 rows, expected 36 for 'panda'"):
            holder.find("panda", "lift", 36)
        with pytest.raises(InputError, match="at_least is 0"):
            holder.find("panda", "lift", 0)
        with pytest.raises(InputError, match="the task 'lift' needs its embodiment"):
            holder.level(None, "lift")
        with pytest.raises(InputError, match=r"no statistics of .*'wipe'.*there are: .*'stack'"):
            holder.level("panda", "wipe")
        with pytest.raises(InputError, match=r"no statistics of .*'iiwa'.*there are: .*'ur5e'"):
            holder.level("iiwa")


def test_results_survive_json() -> None:
    """Written as text and read again, every level is equal."""
    tree = small_tree()
    text = json.dumps(tree.to_json(), allow_nan=False)
    assert StatsTree.from_json(json.loads(text), "levels.json") == tree.levels()
    assert tree.levels().level("panda") == tree.level("panda").result()


def damaged(change: dict[str, Any]) -> Any:
    values = small_tree().to_json()
    values["levels"][1] = {**values["levels"][1], **change}
    return values


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (None, "x: expected an object with names and a list of levels"),
        ({"names": ["a"]}, "x: expected an object with names and a list of levels"),
        ({"levels": []}, r"x\.names: expected a list of slot names"),
        ({"names": [], "levels": []}, r"x\.names: expected a list of slot names"),
        ({"names": ["a"], "levels": [3]}, r"x\.levels\[0\]: expected an object, found 3"),
        (damaged({"task": 3}), r"x\.levels\[1\]\.task: expected a name or null, found 3"),
        (damaged({"embodiment": None, "task": "lift"}), r"\[1\]: task 'lift' has no embodiment"),
        (damaged({"embodiment": None}), r"x\.levels\[1\]: .* are there twice"),
        (damaged({"rows": 0}), r"x\.levels\[1\]\.rows: expected a number of rows, found 0"),
        (damaged({"rows": True}), r"x\.levels\[1\]\.rows: expected a number of rows, found True"),
        (damaged({"stats": None}), r"x\.levels\[1\]\.stats: expected an object"),
        (damaged({"stats": {"mean": [1]}}), r"x\.levels\[1\]\.stats\.std: expected a list"),
        ({**small_tree().to_json(), "names": ["a"]}, r"stats\.names: expected 2 of them, found 1"),
    ],
)
def test_damaged_levels_are_named(values: Any, sentence: str) -> None:
    """The place and what was expected there."""
    with pytest.raises(ConfigError, match=sentence):
        StatsLevels.from_json(values, "x")
