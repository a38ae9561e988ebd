"""How the Triton kernels of ``norm`` are launched. Letters: R rows, M width, B groups, S runs."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from vlakern import env
from vlakern.ops.norm._check import Tensors
from vlakern.ops.norm.triton_kernels import norm_backward_kernel, norm_finish_kernel, norm_kernel

__all__ = [
    "BACKWARD_FLAGS",
    "FORWARD_FLAGS",
    "TILE",
    "launch",
    "launch_backward",
    "options",
    "runs_of",
]

TILE = 128  # columns whose runs one program of the second stage adds
FORWARD_FLAGS = ("WEIGHT", "BIAS", "SCALE", "SHIFT", "GATE", "RESIDUAL", "INDEXED")
BACKWARD_FLAGS = (*FORWARD_FLAGS, "GRAD_H")
FINISH: dict[str, Any] = {"TILE": TILE, "enable_fp_fusion": False}


def options(width: int) -> dict[str, Any]:
    """Settings of the kernels that hold a row: some 8 elements per thread."""
    block = triton.next_power_of_2(width)
    return {
        "BLOCK": block,
        "num_warps": min(max(block // 256, 1), 32),
        "enable_fp_fusion": False,
    }


def runs_of(rows: int, groups: int) -> int:
    """S: a run has at least some 4 rows, and all groups together some 512 runs."""
    per_group = -(-rows // max(groups, 1))
    return max(1, min(-(-per_group // 4), -(-512 // max(groups, 1))))


def _flags(t: Tensors) -> dict[str, Any]:
    given = {name: getattr(t, name.lower()) is not None for name in FORWARD_FLAGS[:-1]}
    return given | {"INDEXED": t.row_group is not None}


def _groups(t: Tensors) -> int:
    modulations = [m for m in (t.scale, t.shift, t.gate) if m is not None]
    return len(modulations[0]) if modulations else 1


def _or(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    """An absent argument still needs a pointer; the kernel does not follow it."""
    return stand_in if tensor is None else tensor


def _step(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.stride(0)


def launch(t: Tensors, kind: str, eps: float) -> None:
    """Writes ``y`` and ``h``; the shapes are checked by the caller."""
    rows, width = t.x.shape
    if rows == 0:
        return
    arguments: list[Any] = [_or(one, t.x) for one in t]
    arguments += [rows, width, _groups(t), eps, *map(_step, t)]
    kinds: dict[str, Any] = {"LAYER": kind == "layer", "PLUS_ONE": kind == "rms_plus_one"}
    kinds["WIDEN"] = env.triton_interpret()
    with torch.cuda.device_of(t.x):
        norm_kernel[(rows,)](*arguments, **kinds, **_flags(t), **options(width))


def launch_backward(
    t: Tensors,
    dy: Tensor,
    dh: Tensor | None,
    grads: Sequence[Tensor],
    kind: str,
    eps: float,
) -> None:
    """Fills the gradients of x, residual, weight, bias, scale, shift, gate; ``t.x`` is h."""
    h, groups, (rows, width) = t.x, _groups(t), t.x.shape
    runs, flags = runs_of(rows, groups), _flags(t)
    dx, dresidual, dweight, dbias, dscale, dshift, dgate = grads
    wanted = (
        t.weight is not None or t.scale is not None,
        t.bias is not None or t.shift is not None,
    )
    p, q, g = (
        torch.empty((groups * runs, width) if one else (0,), device=h.device)
        for one in (*wanted, t.gate is not None)
    )
    order = start = h
    if t.row_group is not None:
        order, start = _sorted_rows(t.row_group, groups)
    tensors = (dy, _or(dh, dy), h, _or(t.weight, h), _or(t.scale, h), _or(t.gate, h))
    tensors += (_or(t.residual, h), order, start, dx, dresidual, p, q, g)
    steps = (dy, dh, h, t.weight, t.scale, t.gate, t.residual, dx)
    arguments: list[Any] = [*tensors, rows, width, groups, runs, eps, *map(_step, steps)]
    arguments.append(_step(dresidual) if t.residual is not None else 0)
    kinds: dict[str, Any] = {"PLUS_ONE": kind == "rms_plus_one"}
    layer: dict[str, Any] = {"LAYER": kind == "layer", "GRAD_H": dh is not None}
    with torch.cuda.device_of(h):
        grid = (groups * runs,)
        norm_backward_kernel[grid](*arguments, **layer, **kinds, **flags, **options(width))
        del flags["RESIDUAL"], flags["INDEXED"]
        sums: list[Any] = [_or(t.weight, h), _or(t.bias, h), _or(t.scale, h), p, q, g]
        sums += [dweight, dbias, dscale, dshift, dgate, width, groups, runs]
        sums += map(_step, (t.weight, t.bias, t.scale))
        grid = (triton.cdiv(width, TILE),)
        norm_finish_kernel[grid](*sums, **kinds, **flags, **FINISH)


def _sorted_rows(row_group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Rows by group in their order, and where each group begins; nothing waits for the device."""
    in_order, order = row_group.sort(stable=True)
    edges = torch.arange(groups + 1, device=row_group.device, dtype=row_group.dtype)
    return order, torch.searchsorted(in_order.contiguous(), edges)
