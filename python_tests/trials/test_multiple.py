"""Holm's correction equals a worked example; letters say exactly which pairs were told apart."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlakern.errors import InputError
from vlakern.trials import compact_letters, holm

NAMES = "ABCDEF"


def test_holm_worked_example() -> None:
    """R's p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm") and an example out of order."""
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.04, 0.001, 0.5]) == pytest.approx([0.08, 0.003, 0.5])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_as_the_step_down_procedure(p_values: list[float]) -> None:
    """Adjusted values at most alpha are those that the sequential definition rejects."""
    alpha = 0.05
    ranked, rejected = sorted(p_values), 0
    while rejected < len(ranked) and ranked[rejected] * (len(ranked) - rejected) <= alpha:
        rejected += 1
    assert sum(p <= alpha for p in holm(p_values)) == rejected


def test_letters_worked_examples() -> None:
    """Piepho's situation: the ends differ, the middle does not; and the two extremes."""
    assert compact_letters("ABC", [("A", "C")]) == {"A": "a", "B": "ab", "C": "b"}
    assert compact_letters("ABC", []) == {"A": "a", "B": "a", "C": "a"}
    every = list(combinations("ABC", 2))
    assert compact_letters("ABC", every) == {"A": "a", "B": "b", "C": "c"}
    assert compact_letters([], []) == {}


@given(st.lists(st.sampled_from(list(combinations(NAMES, 2))), unique=True))
def test_letters_say_exactly_the_pairs(different: list[tuple[str, str]]) -> None:
    """Two names share a letter if and only if they were not told apart; no letter is idle."""
    letters = compact_letters(NAMES, different)
    for pair in combinations(NAMES, 2):
        shared = set(letters[pair[0]]) & set(letters[pair[1]])
        assert bool(shared) == (pair not in different)
    holders = [{n for n in NAMES if one in letters[n]} for one in set("".join(letters.values()))]
    assert not any(a < b for a in holders for b in holders)


def test_refuses_what_is_no_comparison() -> None:
    """A p-value above 1, a name twice and a stranger are named."""
    with pytest.raises(InputError, match=r"1\.5"):
        holm([0.1, 1.5])
    with pytest.raises(InputError, match="every name once"):
        compact_letters(["A", "A"], [])
    with pytest.raises(InputError, match="'Z'"):
        compact_letters(["A", "B"], [("A", "Z")])
