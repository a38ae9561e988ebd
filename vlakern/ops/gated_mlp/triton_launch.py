"""Binds ``gated_mlp`` to launches: two products of ``linear`` and what is between them."""

from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from vlakern.ops.gated_mlp._kernels import Tensors
from vlakern.ops.gated_mlp.triton_kernels import hidden_kernel
from vlakern.ops.linear.packed import PackedLinear
from vlakern.ops.linear.reference import KINDS, LEVELS, quantises
from vlakern.ops.linear.triton_launch import (
    Product,
    Quantised,
    Run,
    Sums,
    flags,
    in_turn,
    launches,
    leave_sums,
    lines,
    scratch_bytes,
    take,
)

__all__ = ["bind", "mlp_scratch_bytes"]


def bind(t: Tensors, activation: str, workspace: Tensor | None) -> Run:
    """The call; a workspace is made if none is given."""
    if workspace is None:
        size = mlp_scratch_bytes(t.x.shape[0], t.gate_up, t.down, activation)
        workspace = torch.empty(size, dtype=torch.uint8, device=t.x.device)
    if t.out.numel() == 0:
        return in_turn((), t.x)
    sizes = _sizes(t.x.shape[0], t.gate_up, t.down, activation)
    hidden, scale, first, second = take(workspace, sizes)
    rows, f = t.x.shape[0], t.down.k
    if not quantises(t.down.kind, rows) or f == 0:
        h = hidden.view(_hidden_dtype(rows, t.down)).view(rows, f)
        runs = launches(Product(t.x, t.gate_up, h, activation), first)
        runs += launches(Product(h, t.down, t.out, residual=t.residual), second)
        return in_turn(runs, t.x)
    steps = hidden.view(KINDS[t.down.kind]).view(rows, -1)
    quantised = Quantised(steps, scale.view(torch.float32))
    # Nothing is written to out; its dtype is the precision of what the library multiplies.
    p = Product(t.x, t.gate_up, torch.empty((0, f), device=t.x.device), activation)
    runs, sums = leave_sums(p, first)
    runs.append(_hidden(p, sums, t.down, quantised))
    last = Product(steps, t.down, t.out, residual=t.residual)
    return in_turn([*runs, *launches(last, second, quantised)], t.x)


def mlp_scratch_bytes(rows: int, gate_up: PackedLinear, down: PackedLinear, activation: str) -> int:
    """Bytes of workspace: the hidden layer and its scales, and each product's own."""
    return sum(map(lines, _sizes(rows, gate_up, down, activation)))


def _sizes(
    rows: int, gate_up: PackedLinear, down: PackedLinear, activation: str
) -> tuple[int, int, int, int]:
    quantised = quantises(down.kind, rows)
    item = (KINDS[down.kind] if quantised else _hidden_dtype(rows, down)).itemsize
    hidden = rows * item * (down.matrix().shape[1] if quantised and down.n else down.k)
    first = scratch_bytes(rows, gate_up, activation, sums=quantised)
    second = scratch_bytes(rows, down, "none")
    return hidden, 4 * rows if quantised else 0, first, second


def _hidden_dtype(rows: int, down: PackedLinear) -> torch.dtype:
    """What the second product takes without rounding it again."""
    return torch.float32 if down.kind == "fp32" or quantises(down.kind, rows) else torch.bfloat16


def _hidden(p: Product, sums: Sums, down: PackedLinear, to: Quantised) -> Run:
    splits, rows, width = sums.z.shape
    w_scale, bias = p.weights.sections()[1:]
    tensors = (sums.z if one is None else one for one in (sums.x_scale, w_scale, bias))
    sizes = (down.k, to.steps.shape[1], splits, rows * width)
    given = flags(p, sums.x_scale)
    names = ("X_SCALED", "W_SCALED", "BIAS", "ACTIVATION", "WIDEN", "enable_fp_fusion")
    block = triton.next_power_of_2(to.steps.shape[1])
    options: dict[str, Any] = {name: given[name] for name in names}
    options |= {"LEVELS": LEVELS[down.kind], "BLOCK": block}
    warps = min(max(block // 512, 1), 16)
    return partial(
        hidden_kernel[(rows,)], sums.z, *tensors, *to, *sizes, **options, num_warps=warps
    )
