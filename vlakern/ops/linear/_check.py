"""The arguments of one ``linear`` call, and the one check of them, at the border."""

from typing import NamedTuple

import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.ops._dispatch import Key
from vlakern.ops.linear.packed import ISA, ISAS, LAYOUT, ROWS, PackedLinear
from vlakern.ops.linear.reference import ACTIVATIONS, GATED

__all__ = [
    "FLOATS",
    "Adaptive",
    "Tensors",
    "check",
    "check_adaptive",
    "check_weights",
    "facts_of",
    "needs_panels",
    "needs_rows",
]

FLOATS = (torch.float32, torch.bfloat16)


class Tensors(NamedTuple):
    """What every backend takes. Letters: M rows, K inputs, N weight rows, C columns."""

    x: Tensor  # [M, K]
    weights: PackedLinear
    bias: Tensor | None  # [N] fp32; the packed one if None
    residual: Tensor | None  # [M, C]
    row_scale: Tensor | None  # [M]
    out: Tensor  # [M, C]


def facts_of(*weights: PackedLinear | None) -> frozenset[str]:
    """What a backend may decide on: the kinds of the weights and how they are packed."""
    given = [one for one in weights if one is not None]
    return frozenset(one.kind for one in given) | {one.isa for one in given}


def needs_panels(key: Key) -> str | None:
    """Refuses weights that the CPU kernels do not read."""
    if "fp8" in key.flags:
        return "fp8 needs a GPU of sm_89 or newer, or the reference"
    return f"takes weights packed with isa={ISA!r}" if ROWS in key.flags else None


def needs_rows(key: Key) -> str | None:
    """Refuses weights that the GPU kernels do not read, and fp8 where it is not in the hardware."""
    if ISA in key.flags:
        return f"takes weights packed with isa={ROWS!r}"
    if "fp8" in key.flags and key.device == "cuda" and key.arch < 89:
        return f"fp8 needs sm_89 or newer, the GPU is sm_{key.arch}"
    return None


def check_weights(op: str, weights: PackedLinear, activation: str) -> None:
    """Raises InputError for weights that the activation or this build cannot take."""
    if activation not in ACTIVATIONS:
        _fail(op, "activation", f"one of {', '.join(ACTIVATIONS)}", repr(activation))
    if weights.gate != (activation in GATED):
        wants = "gate=True" if activation in GATED else "gate=False"
        raise InputError(f"{op}: activation {activation!r} takes weights packed with {wants}")
    if weights.layout != LAYOUT or weights.isa not in ISAS:
        found = f"{weights.layout} for {weights.isa}"
        wants = f"of layout {LAYOUT} for {' or '.join(ISAS)}; pack them again"
        _fail(op, "weights", wants, found)


class Adaptive(NamedTuple):
    """An adaptive norm after a gated product (arXiv 2212.09748), by groups of rows.

    Letters: M rows, N columns, B groups.
    """

    scale: Tensor  # [B, N] fp32
    shift: Tensor  # [B, N] fp32
    gate: Tensor  # [B, N] fp32
    row_group: Tensor  # [M] int32, the group of every row
    added: Tensor  # [M, N] in the stream's dtype, room for the product on its way to the stream


def check(t: Tensors, activation: str) -> None:
    """Raises InputError for the first argument that does not fit the others."""
    check_weights("linear", t.weights, activation)
    if t.x.ndim != 2 or t.x.shape[1] != t.weights.k:
        _fail("linear", "x", f"[M, K] with K = {t.weights.k}", list(t.x.shape))
    rows, columns = t.x.shape[0], t.weights.columns
    _dtype("x", t.x, *FLOATS)
    _dtype("out", t.out, *FLOATS)
    _shape("out", t.out, "M, C", (rows, columns))
    if t.bias is not None:
        if t.weights.has_bias:
            raise InputError("linear: these weights hold a bias already; give none")
        _dtype("bias", t.bias, torch.float32)
        _shape("bias", t.bias, "N", (t.weights.n,))
    if t.residual is not None:
        _dtype("residual", t.residual, t.out.dtype)
        _shape("residual", t.residual, "M, C", (rows, columns))
    if t.row_scale is not None:
        _dtype("row_scale", t.row_scale, torch.float32)
        _shape("row_scale", t.row_scale, "M", (rows,))
    given = {"weights": t.weights.data, "bias": t.bias, "residual": t.residual}
    for name, tensor in (given | {"row_scale": t.row_scale, "out": t.out}).items():
        if tensor is not None and tensor.device != t.x.device:
            _fail("linear", name, f"on x's device {t.x.device}", f"one on {tensor.device}")


def check_adaptive(adaptive: Adaptive, stream: Tensor) -> None:
    """Raises InputError for the first that does not fit the stream ``[M, N]``."""
    rows, width = stream.shape
    groups = len(adaptive.scale)
    for name, one in zip(Adaptive._fields[:3], adaptive, strict=False):
        if one.dtype != torch.float32 or tuple(one.shape) != (groups, width) or one.stride(1) != 1:
            raise InputError(
                f"linear_norm: {name} must be fp32 [B, N] = {[groups, width]} with adjacent"
                f" columns, got {one.dtype} {list(one.shape)}"
            )
    index, added = adaptive.row_group, adaptive.added
    if index.dtype != torch.int32 or tuple(index.shape) != (rows,) or not index.is_contiguous():
        raise InputError(
            f"linear_norm: row_group must be contiguous int32 [M] = {[rows]}, got {index.dtype}"
            f" {list(index.shape)}"
        )
    if added.dtype != stream.dtype or added.shape != stream.shape:
        raise InputError(
            f"linear_norm: added must be {stream.dtype} {list(stream.shape)} as the stream, got"
            f" {added.dtype} {list(added.shape)}"
        )


def _fail(op: str, name: str, expected: str, found: object) -> None:
    raise InputError(f"{op}: {name} must be {expected}, got {found}")


def _shape(name: str, tensor: Tensor, letters: str, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        _fail("linear", name, f"[{letters}] = {list(shape)}", list(tensor.shape))


def _dtype(name: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    if tensor.dtype not in allowed:
        _fail("linear", name, " or ".join(str(one) for one in allowed), tensor.dtype)
