"""The accuracy rule accepts what it should and nothing else."""

import math

import pytest
import torch

from vlakern.testing.compare import assert_accurate, largest_error
from vlakern.testing.tolerances import ROUNDING, ROUNDINGS

EXACT = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
PLAIN = EXACT.float() + 1e-4


def test_twice_the_error_is_allowed() -> None:
    """1.9 times plain PyTorch's error passes, 2.1 times does not."""
    assert_accurate(EXACT.float() + 1.9e-4, EXACT, PLAIN)
    with pytest.raises(AssertionError, match=r"off by 2\.1.*plain PyTorch by 1\.0"):
        assert_accurate(EXACT.float() + 2.1e-4, EXACT, PLAIN)


def test_a_documented_gradient_may_have_three_times() -> None:
    """The looser row of the table is asked for by name."""
    assert_accurate(EXACT.float() + 2.9e-4, EXACT, PLAIN, "g", "documented gradient")
    with pytest.raises(AssertionError, match="3x is allowed"):
        assert_accurate(EXACT.float() + 3.1e-4, EXACT, PLAIN, "g", "documented gradient")


@pytest.mark.parametrize("dtype", ROUNDING)
def test_a_few_roundings_are_allowed_when_plain_is_exact(dtype: torch.dtype) -> None:
    """Luck of plain PyTorch does not fail a result that is rounded well, and no other passes."""
    powers = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)
    exact, least = powers.to(dtype), ROUNDINGS[dtype] * ROUNDING[dtype]
    assert_accurate((powers * (1 + 2 * least)).to(dtype), powers, exact)
    with pytest.raises(AssertionError, match="plain PyTorch by 0"):
        assert_accurate((powers * (1 + 4 * least)).to(dtype), powers, exact)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_poison_is_found(bad: float) -> None:
    """An element that is not finite fails, however many are right."""
    found = EXACT.float()
    found[1] = bad
    with pytest.raises(AssertionError, match="1 of 3 elements that are not finite"):
        assert_accurate(found, EXACT, PLAIN)


def test_shape_and_dtype_must_agree() -> None:
    """A result of another dtype or shape fails."""
    with pytest.raises(AssertionError, match=r"torch.bfloat16 \[3\], expected torch.float32"):
        assert_accurate(EXACT.bfloat16(), EXACT, PLAIN)
    with pytest.raises(AssertionError, match=r"\[1, 3\]"):
        assert_accurate(EXACT.float()[None], EXACT, PLAIN)


def test_empty_tensors_are_equal() -> None:
    """There is nothing to be wrong about."""
    assert largest_error(torch.zeros(0), torch.zeros(0)) == 0
    assert_accurate(torch.zeros(0), torch.zeros(0).double(), torch.zeros(0))
