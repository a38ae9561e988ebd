"""Names in lists and what they stand for."""

import pytest

from vlakern.errors import InputError
from vlakern.sim.robosuite_setup import ARMS, TASKS, known, split_words
from vlakern.space import shipped_embodiments


def test_words_keep_their_order_and_count_once() -> None:
    """Blanks around commas are nothing."""
    assert split_words("UR5e, Panda,UR5e", ARMS, "arm") == ("UR5e", "Panda")


@pytest.mark.parametrize("words", ["Panda,Jaco", "", "Panda,", "panda"])
def test_a_word_that_is_no_name_is_refused(words: str) -> None:
    """Also an empty one, and another spelling; the sentence names what there is."""
    with pytest.raises(InputError, match=r"arm '.*' is not known; use one of Panda, .*XArm7"):
        split_words(words, ARMS, "arm")
    assert known("Lift", TASKS, "task") == "Lift"


def test_every_arm_has_an_embodiment_and_every_task_its_own_sentence() -> None:
    """A dataset's robot type leads to the record, and the policy can tell the tasks apart."""
    assert {f"robosuite_{arm.lower()}" for arm in ARMS} <= set(shipped_embodiments())
    assert len({task.instruction for task in TASKS.values()}) == len(TASKS)
