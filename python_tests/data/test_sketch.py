"""Quantiles from a sketch: exact while few, close beyond, and the same in any order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlakern.data.sketch import EXACT, QuantileSketch
from vlakern.errors import InputError

PLACES = (0.0, 0.01, 0.1, 0.37, 0.5, 0.9, 0.99, 1.0)
KINDS = ("normal", "wide", "two values", "constant", "tiny", "mixed signs")


def numbers(kind: str, count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    x = random.normal(size=count)
    return {
        "normal": 0.3 + x,
        "wide": np.exp(60 * x),
        "two values": np.where(x > 1.0, 0.04, -0.01),
        "constant": np.full(count, 0.7),
        "tiny": x * 1e-300,
        "mixed signs": np.where(x > 0, 1e3, -1e-3) * random.random(count),
    }[kind]


def sketch(parts: list[np.ndarray]) -> QuantileSketch:
    found = QuantileSketch()
    for part in parts:
        found.add(part)
    return found


@pytest.mark.parametrize("count", [1, 2, 101, EXACT])
@pytest.mark.parametrize("kind", KINDS)
def test_few_numbers_are_exact(kind: str, count: int, seed: int) -> None:
    """numpy's quantiles, to the bit."""
    x = numbers(kind, count, seed)
    found = sketch([x[: count // 2], x[count // 2 :]])
    assert found.count == count
    assert [found.quantile(q) for q in PLACES] == [np.quantile(x, q) for q in PLACES]


@pytest.mark.parametrize("count", [EXACT + 1, 30_011])
@pytest.mark.parametrize("kind", KINDS)
def test_many_numbers_are_close(kind: str, count: int, seed: int) -> None:
    """Each of the two order statistics of a quantile within 2**-10 of its own size."""
    x = np.sort(numbers(kind, count, seed))
    found = sketch(np.array_split(np.random.default_rng(seed).permutation(x), 7))
    assert found.count == count
    for q in PLACES:
        rank = q * (count - 1)
        low, high = x[int(np.floor(rank))], x[int(np.ceil(rank))]
        part = rank - np.floor(rank)
        bound = 2.0**-10 * ((1 - part) * abs(low) + part * abs(high)) * (1 + 1e-9)
        assert abs(found.quantile(q) - (low + part * (high - low))) <= bound, q


@pytest.mark.parametrize("kind", ["two values", "constant"])
def test_repeated_numbers_stay_exact(kind: str, seed: int) -> None:
    """However many they are, as a gripper's two positions."""
    x = numbers(kind, 10 * EXACT, seed)
    found = sketch([x])
    assert [found.quantile(q) for q in PLACES] == [np.quantile(x, q) for q in PLACES]


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 1500), min_size=1, max_size=6),
    st.sampled_from(KINDS),
)
def test_order_and_partition_do_not_matter(seed: int, sizes: list[int], kind: str) -> None:
    """Added at once, in parts, or as merged sketches in a tree: the same bits."""
    x = numbers(kind, sum(sizes) + 1, seed)
    parts = np.split(x, np.cumsum(sizes))
    expected = [sketch([x]).quantile(q) for q in PLACES]
    shuffled = sketch([part[::-1] for part in reversed(parts)])
    assert [shuffled.quantile(q) for q in PLACES] == expected
    left, right = sketch(parts[::2]), sketch(parts[1::2])
    if right.count:
        right.quantile(0.5)
    before = right.count
    left.merge(right)
    assert (left.count, right.count) == (len(x), before)
    assert [left.quantile(q) for q in PLACES] == expected


def test_a_sketch_merged_with_itself_counts_twice(seed: int) -> None:
    """And the quantiles of twice the same numbers are theirs."""
    x = numbers("normal", 3 * EXACT, seed)
    found = sketch([x])
    found.merge(found)
    assert found.count == 2 * len(x)
    assert found.quantile(0.25) == sketch([x, x]).quantile(0.25)


def test_it_keeps_no_reference_to_the_caller(seed: int) -> None:
    """An array that is reused for the next rows does not change what was counted."""
    x = numbers("normal", 10, seed)
    found = sketch([x])
    median = found.quantile(0.5)
    x[:] = 1e9
    assert found.quantile(0.5) == median


def test_bad_questions() -> None:
    """Nothing seen, or no quantile."""
    with pytest.raises(InputError, match="at least one number"):
        QuantileSketch().quantile(0.5)
    for q in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="between 0 and 1"):
            sketch([np.ones(3)]).quantile(q)
