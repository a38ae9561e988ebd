"""The engine's memory: where it begins, what it holds, and what is said when there is none."""

import pytest
import torch

from vlakern.errors import InputError
from vlakern.infer.buffers import LINE, Limits, allocate


@pytest.mark.parametrize("size", [1, 63, 64, 65, 4097, 3 << 20])
def test_the_arena_begins_on_a_cache_line(size: int) -> None:
    """Whatever its size, of which it has exactly as many bytes."""
    made = allocate(size, (2, 2, 3, 4), torch.bfloat16, (1, 6, 5))
    assert made.arena.data_ptr() % LINE == 0
    assert made.arena.dtype == torch.uint8
    assert len(made.arena) == size


def test_the_buffers_have_the_shapes_that_were_asked_for() -> None:
    """Keys and values in the dtype of the activations, actions in fp32; bytes add up."""
    made = allocate(100, (2, 2, 3, 4), torch.bfloat16, (1, 6, 5))
    assert (made.kv.shape, made.kv.dtype) == ((2, 2, 3, 4), torch.bfloat16)
    assert (made.x.shape, made.x.dtype) == ((1, 6, 5), torch.float32)
    assert made.nbytes == 100 + 2 * 48 + 4 * 30


@pytest.mark.parametrize("which", ["arena", "kv", "x"])
def test_memory_that_is_not_there_is_named(which: str) -> None:
    """One sentence with the megabytes, what they are for and what to make smaller."""
    most = 1 << 60
    arena = most if which == "arena" else 64
    tokens = most // 16 if which == "kv" else 3
    rows = most // 16 if which == "x" else 1
    with pytest.raises(InputError, match=r"the engine needs \d+ MB .*\d+ MB .*; build it for") as e:
        allocate(arena, (1, 2, tokens, 4), torch.float32, (rows, 2, 2))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("field", ["observations", "views", "tokens", "rows"])
@pytest.mark.parametrize("value", [0, -3])
def test_limits_below_one_are_refused(field: str, value: int) -> None:
    """The sentence names the count and what it counts."""
    limits = {"observations": 1, "views": 1, "tokens": 1, "rows": 1} | {field: value}
    with pytest.raises(InputError, match=f"an engine for {value} {field}"):
        Limits(**limits)
