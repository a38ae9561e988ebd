"""What a caller holds becomes an array, or an error of one sentence."""

from typing import Any

import numpy as np
import pytest
import torch

from vlakern.errors import InputError
from vlakern.space.arrays import read_array

NONE = {
    "a ragged list": ([[1.0], [1.0, 2.0]], "state is a list that is no array"),
    "bf16": (torch.zeros(3, dtype=torch.bfloat16), "state is a Tensor that is no array .*BFloat16"),
    "a gradient": (torch.zeros(3, requires_grad=True), "state is a Tensor that is no array .*grad"),
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_array_is_refused(name: str) -> None:
    """In one sentence that names what it was and what to give."""
    values, sentence = NONE[name]
    with pytest.raises(InputError, match=sentence) as caught:
        read_array(values, "state")
    assert "give floating-point numbers in NumPy" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [[1.0, 2.0], (1.0, 2.0), torch.tensor([1.0, 2.0])])
def test_what_is_an_array_is_read(values: Any) -> None:
    """Lists, tuples and tensors of the host."""
    np.testing.assert_array_equal(read_array(values, "state"), [1.0, 2.0])


def test_an_array_is_not_copied() -> None:
    """It is on the way of every action."""
    mine = np.zeros(3)
    assert read_array(mine, "state") is mine
