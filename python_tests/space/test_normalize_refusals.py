"""Statistics and vectors that are no numbers are refused in one sentence."""

from typing import Any

import numpy as np
import pytest
import torch

from vlakern.errors import ConfigError, InputError
from vlakern.space import Normalizer, VectorStats

STATS = VectorStats.units(("a", "b"))


class Thing:
    """No number."""


VECTORS: dict[str, tuple[Any, str]] = {
    "a word": ("ab", r"hand is <U2\[\], expected numbers \[\.\.\., S\]"),
    "words": (["a", "b"], r"hand is <U1\[2\], expected numbers"),
    "nothing": (None, r"hand is object\[\], expected numbers"),
    "objects": (np.array([Thing(), Thing()]), r"hand is object\[2\], expected numbers"),
    "flags": ([True, False], r"hand is bool\[2\], expected numbers"),
    "a ragged list": ([[1.0, 2.0], [1.0]], "hand is a list that is no array"),
    "bf16": (torch.zeros(2, dtype=torch.bfloat16), "hand is a Tensor that is no array"),
    "a short list": ([1.0], "hand has 1 slots, expected 2"),
}


@pytest.mark.parametrize("name", VECTORS)
def test_what_are_no_numbers_is_refused(name: str) -> None:
    """By encode and decode."""
    values, sentence = VECTORS[name]
    normalizer = Normalizer("hand", "zscore", STATS)
    for call in (normalizer.encode, normalizer.decode):
        with pytest.raises(InputError, match=sentence) as caught:
            call(values)
        assert "\n" not in str(caught.value)


def test_a_list_of_numbers_is_an_array() -> None:
    """There and back."""
    values: Any = [1.0, -3.0]
    normalizer = Normalizer("hand", "zscore", STATS)
    np.testing.assert_array_equal(normalizer.encode(values), [1.0, -3.0])
    np.testing.assert_array_equal(normalizer.decode(values), [1.0, -3.0])


@pytest.mark.parametrize("modes", [None, 3, {"zscore"}])
def test_modes_are_a_name_or_a_list(modes: Any) -> None:
    """The sentence names the modes there are."""
    with pytest.raises(ConfigError, match=r"hand: modes is .*, expected one of zscore, quantile"):
        Normalizer("hand", modes, STATS)


def test_statistics_of_lists_are_those_of_tuples() -> None:
    """Equal, and as hashable."""
    low, high, zero, one = [-1.0, -1.0], [1.0, 1.0], [0, 0], np.ones(2)
    given: Any = (zero, one, low, high, low, high)
    found = VectorStats(*given, names=("a", "b"))
    assert found == STATS
    assert hash(found) == hash(STATS)


@pytest.mark.parametrize("wrong", [None, "12", 3, ["a", "b"], [[1.0], [2.0]], [None, 1.0]])
def test_statistics_that_are_no_numbers_are_refused(wrong: Any) -> None:
    """By the list."""
    ones = (1.0, 1.0)
    with pytest.raises(ConfigError, match=r"statistics\.std is .*, expected a list with one numb"):
        VectorStats(ones, wrong, ones, ones, ones, ones)


def test_statistics_of_different_lengths_are_refused() -> None:
    """By all of the lengths."""
    ones = (1.0, 1.0)
    with pytest.raises(
        ConfigError, match=r"lists of one length expected, found \{'mean': 2, 'std'"
    ):
        VectorStats(ones, (1.0,), ones, ones, ones, ones)
