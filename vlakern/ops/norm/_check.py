"""The arguments of one ``norm`` call, and the one check of them, at the border."""

from typing import NamedTuple

import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.ops.norm.reference import KINDS

__all__ = ["MODULATIONS", "Tensors", "check"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MODULATIONS = ("scale", "shift", "gate")
EXACT = ("y", "h", "row_group")  # of one dtype


class Tensors(NamedTuple):
    """What every backend takes. Letters: R rows, M width, B groups of rows."""

    x: Tensor  # [R, M]
    weight: Tensor | None  # [M]
    bias: Tensor | None  # [M]
    scale: Tensor | None  # [M] or [B, M]
    shift: Tensor | None  # [M] or [B, M]
    gate: Tensor | None  # [M] or [B, M]
    residual: Tensor | None  # [R, M]
    row_group: Tensor | None  # [R] int32
    y: Tensor  # [R, M]
    h: Tensor | None  # [R, M], with a residual alone


def check(t: Tensors, kind: str, eps: float) -> None:
    """Raises InputError for the first argument that does not fit the others."""
    if kind not in KINDS:
        _fail("kind", f"one of {', '.join(KINDS)}", repr(kind))
    if t.x.ndim != 2 or t.x.shape[1] == 0:
        _fail("x", "[R, M] with M at least 1", list(t.x.shape))
    if not eps >= 0:
        _fail("eps", "0 or more", eps)
    rows, width = t.x.shape
    floats = (torch.float64,) if t.x.dtype == torch.float64 else FLOATS
    device = t.x.device
    for name, tensor in zip(Tensors._fields, t, strict=True):
        if tensor is None:
            continue
        if tensor.device != device:
            _fail(name, f"on x's device {device}", f"one on {tensor.device}")
        dtypes = floats
        if name in EXACT:
            dtypes = (torch.int32,) if name == "row_group" else (t.x.dtype,)
        if tensor.dtype not in dtypes:
            _fail(name, " or ".join(str(one) for one in dtypes), tensor.dtype)
    for name in ("residual", "y", "h"):
        _shape(name, getattr(t, name), "R, M", (rows, width))
    for name in ("weight", "bias"):
        _shape(name, getattr(t, name), "M", (width,))
    _shape("row_group", t.row_group, "R", (rows,))
    _check_presence(t, kind)
    _check_modulations(t, rows, width)


def _check_presence(t: Tensors, kind: str) -> None:
    if t.bias is not None and kind != "layer":
        raise InputError(f"norm: kind {kind!r} takes no bias; shift adds to a modulated norm")
    if t.gate is not None and t.residual is None:
        raise InputError("norm: gate scales a residual, and there is none")
    if (t.h is None) != (t.residual is None):
        needs = "needs h_out" if t.h is None else "has no use for h_out"
        raise InputError(f"norm: a call {'with' if t.h is None else 'without'} a residual {needs}")


def _check_modulations(t: Tensors, rows: int, width: int) -> None:
    given = {name: m for name in MODULATIONS if (m := getattr(t, name)) is not None}
    shapes = {tuple(one.shape) for one in given.values()}
    for name, one in given.items():
        if tuple(one.shape) != (width,) and (one.ndim != 2 or one.shape[1] != width):
            _fail(name, f"[M] = [{width}] or [B, M] = [B, {width}]", list(one.shape))
    if len(shapes) > 1:
        found = ", ".join(f"{name} {list(one.shape)}" for name, one in given.items())
        raise InputError(f"norm: scale, shift and gate must have one shape, got {found}")
    if t.row_group is not None and (not shapes or len(next(iter(shapes))) == 1):
        raise InputError("norm: row_group needs a scale, shift or gate of shape [B, M]")
    groups = next(iter(shapes))[0] if shapes and len(next(iter(shapes))) == 2 else 1
    if t.row_group is None and (groups == 0 or rows % groups):
        raise InputError(
            f"norm: {rows} rows are not equal runs of {groups} groups; give row_group, the group of"
            " every row"
        )


def _fail(name: str, expected: str, found: object) -> None:
    raise InputError(f"norm: {name} must be {expected}, got {found}")


def _shape(name: str, tensor: Tensor | None, letters: str, shape: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != shape:
        _fail(name, f"[{letters}] = {list(shape)}", list(tensor.shape))
