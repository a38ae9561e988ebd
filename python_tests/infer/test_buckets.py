"""The sizes that a device's calls are prepared for."""

import itertools

import pytest

from vlakern.infer.buckets import MOST, WHOLE, Bucket, Ladders, ladders, thinned, whole_calls
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


def test_whole_calls_of_one_robot() -> None:
    """Its cameras; with candidates all of them or one. No prompt consists of images alone."""
    sizes = Ladders((1, 2), (64, 128, 192, 256), (1,))
    found = whole_calls(sizes, Limits(1, 2, 256, 1), view_tokens=64)
    assert found == (Bucket(2, 256, 1), Bucket(2, 192, 1))
    limits = Limits(1, 2, 200, 8)
    assert set(whole_calls(ladders(limits), limits, view_tokens=64)) == {
        Bucket(2, tokens, rows) for tokens in (192, 200) for rows in (1, 8)
    }


def test_whole_calls_of_sizes_below_the_limits() -> None:
    """One size of each stage is one call: what a benchmark brings, without the states' tokens."""
    sizes = Ladders((16,), (8 * 219,), (8,))
    limits = Limits(8, 16, 8 * 220, 8)
    assert whole_calls(sizes, limits, view_tokens=64) == (Bucket(16, 8 * 219, 8),)


def test_whole_calls_of_several_robots() -> None:
    """All of them or one, a chunk each or all chunks; then fewer. At most 16, one of each size."""
    limits = Limits(4, 8, 4 * 256, 8)
    sizes = ladders(limits)
    found = whole_calls(sizes, limits, view_tokens=64)
    assert len(found) == len(set(found)) <= WHOLE
    calls = {(one.views, one.rows) for one in found}
    assert calls >= {(8, 8), (8, 4), (2, 1), (2, 8)}
    assert {one.views * 64 < one.tokens for one in found} == {True}
    # A robot's prompts are a robot's, not four ones'.
    assert max(one.tokens for one in found if one.views == 2) == sizes.of(tokens=256)[0]
    many = Limits(64, 128, 64 * 256, 64)
    assert len(whole_calls(ladders(many), many, view_tokens=64)) == WHOLE
