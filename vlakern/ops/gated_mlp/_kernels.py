"""The backends of ``gated_mlp`` under one signature; each function here makes one kernel.

A kernel binds tensors and activation to a call without arguments, which may be made again and again
on the same memory.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vlakern import env
from vlakern.ops import _native
from vlakern.ops.gated_mlp.reference import HIDDEN, gated_mlp_reference
from vlakern.ops.linear._kernels import workspace_bytes
from vlakern.ops.linear.packed import ROWS, PackedLinear

__all__ = ["Tensors", "cpu", "mlp_workspace_bytes", "reference", "triton"]


class Tensors(NamedTuple):
    """What every backend takes. Letters: M rows, K inputs, F hidden columns, N outputs."""

    x: Tensor  # [M, K]
    gate_up: PackedLinear  # 2 F rows, K
    down: PackedLinear  # N rows, F
    residual: Tensor | None  # [M, N]
    out: Tensor  # [M, N]


Kernel = Callable[[Tensors, str, "Tensor | None"], Callable[[], None]]


def mlp_workspace_bytes(
    rows: int, gate_up: PackedLinear, down: PackedLinear, activation: str
) -> int:
    """Bytes of workspace that the kernel for these weights needs: the hidden layer and a pass's
    own."""
    if gate_up.isa == ROWS:
        from vlakern.ops.gated_mlp.triton_launch import mlp_scratch_bytes

        return mlp_scratch_bytes(rows, gate_up, down, activation)
    passes = (
        workspace_bytes(rows, gate_up, activation),
        workspace_bytes(rows, down, "none"),
    )
    return _hidden_bytes(rows, down) + max(passes)


def _hidden_bytes(rows: int, down: PackedLinear) -> int:
    return -(-rows * down.k * HIDDEN[down.kind].itemsize // 64) * 64


def _packed(weights: PackedLinear) -> tuple[object, ...]:
    """What native code takes for packed weights."""
    views = map(_native.view, weights.sections())
    return (*views, weights.n, weights.k, weights.kind)


def cpu() -> Kernel:
    """The native CPU kernel, on as many threads as torch uses."""
    native, isa = _native.cpu_module(), env.cpu_isa()
    native.selected_isa(isa)  # raises Unsupported here and not in the first call

    def bind(t: Tensors, activation: str, workspace: Tensor | None) -> Callable[[], None]:
        rows = t.x.shape[0]
        if workspace is None:
            size = mlp_workspace_bytes(rows, t.gate_up, t.down, activation)
            workspace = torch.empty(size, dtype=torch.uint8)
        split = _hidden_bytes(rows, t.down)
        hidden = workspace[: rows * t.down.k * HIDDEN[t.down.kind].itemsize]
        hidden = hidden.view(HIDDEN[t.down.kind]).view(rows, t.down.k)
        memory = (t.residual, hidden, t.out, workspace[split:])
        weights = (_packed(t.gate_up), _packed(t.down))
        call = native.GatedMlp(
            _native.view(t.x),
            *weights,
            *map(_native.view, memory),
            activation,
            isa,
            torch.get_num_threads(),
        )
        return _Held(call, (t, workspace))

    return bind


class _Held:
    """A native call and the memory that it holds only the addresses of."""

    def __init__(self, call: Callable[[], None], memory: object) -> None:
        self.call = call
        self.memory = memory

    def __call__(self) -> None:
        self.call()


def triton() -> Kernel:
    """The Triton kernels, and torch's matmul for many rows."""
    from vlakern.ops.gated_mlp.triton_launch import bind

    return bind


def reference() -> Kernel:
    """The definition."""
    return lambda t, activation, workspace: partial(_reference, t, activation)


def _reference(t: Tensors, activation: str) -> None:
    y = gated_mlp_reference(
        t.x,
        t.gate_up.unpack(),
        t.down.unpack(),
        activation=activation,
        residual=t.residual,
        kinds=(t.gate_up.kind, t.down.kind),
        out_dtype=t.out.dtype,
    )
    t.out.copy_(y)
