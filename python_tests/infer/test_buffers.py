"""The engine's memory: where it begins, and what is said when there is none."""

import pytest
import torch

from vlakern.errors import InputError
from vlakern.infer.buffers import LINE, Buffers, Limits, arena, room, vacant


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4097, 3 << 20])
def test_the_arena_begins_on_a_cache_line(size: int) -> None:
    """Whatever its size, of which it has exactly as many bytes."""
    made = arena(size)
    assert made.data_ptr() % LINE == 0 or size == 0
    assert (made.dtype, made.shape) == (torch.uint8, (size,))


def test_bytes_add_up() -> None:
    """Of arena, keys and values, and actions, in their dtypes."""
    kv = vacant((2, 2, 3, 4), torch.bfloat16, "keys")
    made = Buffers(arena(100), kv, vacant((1, 6, 5), torch.float32, "chunks"))
    assert (made.kv.shape, made.kv.dtype) == ((2, 2, 3, 4), torch.bfloat16)
    assert made.nbytes == 100 + 2 * 48 + 4 * 30


@pytest.mark.parametrize("size", [1 << 50, 1 << 62], ids=["large", "overflow"])
def test_memory_that_is_not_there_is_named(size: int) -> None:
    """One sentence with the megabytes, what they are for and what to make smaller."""
    with pytest.raises(InputError, match=r"needs \d+ MB for the keys, and they .*; build") as error:
        vacant((size, 2), torch.bfloat16, "the keys")
    assert f"{4 * size / 1e6:.0f} MB" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"needs \d+ MB for what its stages pass on"):
        arena(size)


def test_other_errors_pass() -> None:
    """Only memory that is missing is called so."""
    with pytest.raises(KeyError, match="x"), room(1, "nothing"):
        raise KeyError("x")


@pytest.mark.parametrize("field", ["observations", "views", "tokens", "rows"])
@pytest.mark.parametrize("value", [0, -3, 1 << 31, 1 << 70])
def test_absurd_limits_are_refused(field: str, value: int) -> None:
    """The sentence names the count and what it counts."""
    limits = {"observations": 1, "views": 1, "tokens": 1, "rows": 1} | {field: value}
    with pytest.raises(InputError, match=f"an engine for {value} {field}"):
        Limits(**limits)
