"""The table of tasks."""

import pytest

from vlakern.errors import InputError
from vlakern.sim.metaworld import SUITES, TASKS, _library
from vlakern.sim.metaworld_tasks import task_names


def test_table_is_the_simulators():
    """Every task the simulator has, and no other."""
    assert set(TASKS) == set(_library().environments)
    assert all(task.name == name for name, task in TASKS.items())


def test_sentences_tell_tasks_apart():
    """No two tasks share an instruction."""
    assert len({task.instruction for task in TASKS.values()}) == len(TASKS) == 50


def test_suites_name_tasks():
    """A suite holds known tasks; the first covers reaching, pushing, a drawer, a door, a button."""
    assert all(name in TASKS for suite in SUITES.values() for name in suite)
    words = ("reach", "push", "drawer", "door", "button")
    assert [w for w in words if any(w in name for name in SUITES["mw5"])] == list(words)


def test_task_names():
    """Suites unfold, repeats vanish, the order stays."""
    assert task_names("mw5") == SUITES["mw5"]
    assert task_names("push-v3, mw5") == ("push-v3", "reach-v3", *SUITES["mw5"][2:])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("raech-v3", "unknown task 'raech-v3' in --tasks; did you mean reach-v3"),
        ("mw5,zzzzzzzz", "unknown task 'zzzzzzzz' in --tasks; try mw5"),
        ("", "unknown task ''"),
        ("mw5,", "unknown task ''"),
    ],
)
def test_unknown_words(words: str, said: str):
    """A word that is no task is named, with what it may have meant."""
    with pytest.raises(InputError, match=said):
        task_names(words)
