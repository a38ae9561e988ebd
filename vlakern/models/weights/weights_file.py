"""One safetensors file, checked against what a model expects before anything is allocated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vlakern.errors import CheckpointError

__all__ = ["check_finite", "open_file"]

WEIGHT_DTYPES = ("BF16", "F16", "F32", "F64")


def open_file(path: Path, expected: dict[str, tuple[int, ...]]) -> Callable[[str], torch.Tensor]:
    """The tensors of a safetensors file by name; names, shapes and dtypes are checked first.

    The file is mapped: a tensor is read when it is used.

    Raises:
        CheckpointError: the file is missing or damaged, or holds other tensors than expected.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; a policy directory needs its weights")
    try:
        file = safe_open(path, framework="pt", device="cpu").__enter__()
        _check_names(path, expected, set(file.keys()))
        for name, shape in expected.items():
            found = tuple(file.get_slice(name).get_shape())
            if found != shape:
                raise CheckpointError(
                    f"{path}: tensor {name!r} has shape {found}, the model in config.json needs"
                    f" {shape}"
                )
            dtype_found = file.get_slice(name).get_dtype()
            if dtype_found not in WEIGHT_DTYPES:
                raise CheckpointError(
                    f"{path}: tensor {name!r} is {dtype_found}, expected one of"
                    f" {', '.join(WEIGHT_DTYPES)}"
                )
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error}); copy it again"
        ) from error
    return file.get_tensor


def _check_names(path: Path, expected: dict[str, Any], found: set[str]) -> None:
    missing, extra = sorted(set(expected) - found), sorted(found - set(expected))
    if missing or extra:
        what = f"lacks {missing[0]!r}" if missing else f"holds {extra[0]!r}, which is unknown"
        raise CheckpointError(
            f"{path} {what} ({len(missing)} tensors missing, {len(extra)} unknown); it was written"
            " for another model than config.json describes"
        )


def check_finite(tensors: dict[str, torch.Tensor], where: Path) -> None:
    """Raises CheckpointError naming a tensor that holds infinities or NaN."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{where}: tensor {name!r} holds values that are not finite")
