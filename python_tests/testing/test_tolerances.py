"""The table of tolerances says what the dtypes say."""

import pytest
import torch

from vlakern.testing.tolerances import FACTOR, ROUNDING


@pytest.mark.parametrize("dtype", ROUNDING)
def test_one_rounding(dtype: torch.dtype) -> None:
    """Half of the distance from 1 to the next number."""
    assert ROUNDING[dtype] == torch.finfo(dtype).eps / 2


def test_factors() -> None:
    """Twice, and three times for a gradient that documents it."""
    assert FACTOR == {"value": 2.0, "gradient": 2.0, "documented gradient": 3.0}
