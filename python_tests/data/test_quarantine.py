"""Damaged samples are counted by name and reason, and stop a run above 0.1 %."""

import pytest

from vlakern.data.quarantine import Damage, Quarantine
from vlakern.errors import DatasetError


def damages(count: int) -> list[Damage]:
    return [Damage(f"set/0/{i}", f"frame {i} is damaged") for i in range(count)]


def test_the_threshold_is_a_thousandth_of_what_was_drawn() -> None:
    """20 of 20,000 pass, one more stops; below 10,000 draws ten are allowed."""
    book = Quarantine()
    book.add(100, damages(10))
    with pytest.raises(DatasetError, match=r"11 of 101 samples are damaged, more than 0\.1%"):
        book.add(1, damages(1))
    book = Quarantine()
    book.add(19_000, [])
    book.add(1_000, damages(20))
    with pytest.raises(DatasetError, match=r"21 of 20001 .* 20 of them differ, .*set/0/0"):
        book.add(1, damages(1))


def test_ids_and_reasons_are_kept_once_in_order() -> None:
    """However often a sample is met; the counts say how often."""
    book = Quarantine()
    book.add(50, [*damages(2), *damages(1)])
    assert (book.drawn, book.count) == (50, 3)
    assert list(book.reasons.items()) == [
        ("set/0/0", "frame 0 is damaged"),
        ("set/0/1", "frame 1 is damaged"),
    ]
    assert book.to_json() == {"drawn": 50, "damaged": 3, "reasons": book.reasons}
