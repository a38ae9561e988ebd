"""The table of tasks."""

from vlakern.sim.metaworld import SUITES, TASKS, _library


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
