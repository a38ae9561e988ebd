"""The chain: any edit, deletion, insertion or reordering is seen."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlakern.blind.events import ROOT, Event, check_chain, decode, encode, link
from vlakern.errors import StudyError


def chain(length: int) -> list[Event]:
    events: list[Event] = []
    previous = ROOT
    for number in range(length):
        data = {"code": f"C{number}", "progress": number / 3, "name": "Ω", "none": None}
        events.append(
            link(number, f"k{number}", 1e9 + number / 7, "operator", "started", data, previous)
        )
        previous = events[-1].hash
    return events


def test_an_event_is_one_line_and_comes_back() -> None:
    """Every value of JSON survives, to the last bit of a float."""
    for event in chain(5):
        line = encode(event)
        assert line.count(b"\n") == 1
        assert decode(line) == event


def read(text: bytes) -> None:
    """A log's whole text, as the store takes it."""
    found = [decode(line) for line in text.splitlines(keepends=True)]
    if b"".join(encode(event) for event in found) != text:
        raise StudyError("not the text of its events")
    check_chain(found, "log")


def test_every_flipped_bit_is_seen() -> None:
    """Each single bit of a log of three events: a line that is no event, or a broken chain."""
    text = b"".join(encode(event) for event in chain(3))
    read(text)
    for index in range(len(text)):
        for bit in range(8):
            flipped = bytearray(text)
            flipped[index] ^= 1 << bit
            with pytest.raises(StudyError):
                read(bytes(flipped))


@given(st.integers(0, 2**32 - 1))
def test_deleting_or_moving_an_event_is_seen(seed: int) -> None:
    """Anywhere but at the end, which the second record and its count hold."""
    source = random.Random(seed)
    events = chain(8)
    index = source.randrange(7)
    left = events[:index] + events[index + 1 :]
    with pytest.raises(StudyError, match="was changed"):
        check_chain(left, "log")
    moved = list(left)
    other = source.choice([place for place in range(8) if place != index])
    moved.insert(other, events[index])
    with pytest.raises(StudyError, match="was changed"):
        check_chain(moved, "log")


def test_a_kind_that_is_unknown_is_a_mistake() -> None:
    """Only what the rules know is written."""
    with pytest.raises(ValueError, match="kind is 'erased'"):
        link(0, "k", 0.0, "operator", "erased", {}, ROOT)
