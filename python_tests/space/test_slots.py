"""Slots that overlap, leave their vector or are ambiguous are refused by name."""

import itertools

import pytest

from vlakern.errors import ConfigError
from vlakern.space import Slot, check_slots

HAND = Slot("hand position", "m", 0, 3)
GRIP = Slot("gripper", "1", 3, 4)


def test_slots_in_order_pass_and_need_not_fill_the_vector() -> None:
    """Reserved indices between and after slots are legal."""
    check_slots([], 4, "state")
    check_slots([HAND, GRIP], 4, "state")
    check_slots([GRIP, HAND, Slot("base", "m", 6, 8)], 10, "state")


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (2, 4), (1, 2), (0, 3), (2, 3)], ids=lambda n: str(n)
)
def test_an_overlap_names_both(start: int, stop: int) -> None:
    """At either end, inside, or the same range; in whatever order they are given."""
    other = Slot("wrist", "rad", start, stop)
    for slots in itertools.permutations([HAND, other]):
        with pytest.raises(ConfigError, match=r"state: slots '.*\) and '.*\) overlap") as caught:
            check_slots(slots, 4, "state")
        assert "hand position" in str(caught.value)
        assert "wrist" in str(caught.value)


def test_an_overlap_far_from_its_neighbour_is_found() -> None:
    """A long slot that covers several short ones."""
    short = [Slot(f"joint {i}", "rad", i, i + 1) for i in range(1, 6)]
    with pytest.raises(ConfigError, match=r"slots 'all' \[0, 6\) and 'joint 1' \[1, 2\) overlap"):
        check_slots([*short, Slot("all", "rad", 0, 6)], 8, "action")


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 5), (2, 2), (3, 1)])
def test_a_range_outside_the_vector_is_refused(start: int, stop: int) -> None:
    """Negative, beyond the width, empty or backwards."""
    with pytest.raises(ConfigError, match=rf"state: slot 'x' covers \[{start}, {stop}\)"):
        check_slots([Slot("x", "m", start, stop)], 4, "state")


def test_a_name_is_used_once() -> None:
    """Two slots of one name could not be told apart in a message."""
    with pytest.raises(ConfigError, match="two slots are called 'gripper'"):
        check_slots([GRIP, Slot("gripper", "1", 0, 1)], 4, "state")


def test_an_unknown_unit_is_refused() -> None:
    """The sentence names the units there are."""
    with pytest.raises(ConfigError, match="unit 'deg'; known are m, rad"):
        check_slots([Slot("x", "deg", 0, 1)], 4, "state")
