"""The sizes that a device's calls are prepared for."""

import itertools

import pytest

from vlakern.infer.buckets import MOST, Bucket, Ladders, ladders, thinned, whole_calls
from vlakern.infer.buffers import Limits


def test_a_robots_sizes() -> None:
    """Two views and 256 tokens: all numbers of views, steps of 64 tokens, powers of 2 of chunks."""
    assert ladders(Limits(1, 2, 256, 8)) == Ladders((1, 2), (64, 128, 192, 256), (1, 2, 4, 8))
    assert ladders(Limits(1, 1, 20, 1)) == Ladders((1,), (20,), (1,))
    assert ladders(Limits(3, 3, 100, 6)).rows == (1, 2, 4, 6)


@pytest.mark.parametrize("most", [1, 2, 9, 16, 17, 64, 100, 788, 1024, 1025, 5000, 1 << 20])
def test_few_sizes_whose_last_is_the_limit(most: int) -> None:
    """Ascending and at most 8, from one chunk on."""
    sizes = ladders(Limits(most, most, most, most))
    for ladder in (sizes.views, sizes.tokens, sizes.rows):
        assert ladder[-1] == most
        assert list(ladder) == sorted(set(ladder))
        assert len(ladder) <= MOST
    assert sizes.rows[0] == 1


def test_the_smallest_that_holds_a_call() -> None:
    """Exact sizes hold themselves; by names, in their order."""
    sizes = Ladders((1, 2), (64, 128, 200), (1, 4))
    assert sizes.of(tokens=64) == (64,)
    assert sizes.of(tokens=65, rows=1, views=2) == (128, 1, 2)
    assert sizes.of(tokens=129, rows=2, views=0) == (200, 4, 1)


def test_thinning_keeps_both_ends() -> None:
    """And spreads the others over what is between."""
    kept = thinned(range(1, 21))
    assert (len(kept), kept[0], kept[-1]) == (8, 1, 20)
    assert max(b - a for a, b in itertools.pairwise(kept)) <= 4
    assert thinned([3]) == (3,)


def test_whole_calls_are_the_largest_that_fit_together() -> None:
    """No prompt consists of images alone; at most 8."""
    sizes = Ladders((1, 2), (64, 128, 192), (1,))
    found = whole_calls(sizes, view_tokens=64)
    assert set(found) == {Bucket(1, 128, 1), Bucket(1, 192, 1), Bucket(2, 192, 1)}
    assert found[0] == Bucket(2, 192, 1)
    many = whole_calls(ladders(Limits(8, 16, 2048, 64)), view_tokens=64)
    assert len(many) == MOST
    assert many[0] == Bucket(16, 2048, 64)
