"""Arrays from whatever a caller holds, refused in one sentence where they cannot be."""

from typing import Any

import numpy as np

from vlakern.errors import InputError

__all__ = ["read_array"]


def read_array(values: Any, what: str) -> np.ndarray:
    """``values`` as an array of whatever dtype; no copy where it is one already.

    Raises:
        InputError: a ragged list, or a tensor that NumPy cannot read (bf16, on a GPU, with a
            gradient).
    """
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{what} is a {type(values).__name__} that is no array ({_first_line(error)}); give"
            " floating-point numbers in NumPy, or rows of one length"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
