"""The backends of ``linear`` under one signature; each function here makes one kernel.

A kernel binds tensors and activation to a call without arguments, which may be made again and again
on the same memory.
"""

from collections.abc import Callable
from functools import partial

import torch

from vlakern import env
from vlakern.ops import _native
from vlakern.ops.linear._check import Tensors
from vlakern.ops.linear.packed import ROWS, PackedLinear
from vlakern.ops.linear.reference import linear_reference

__all__ = ["cpu", "reference", "triton", "workspace_bytes"]

Kernel = Callable[[Tensors, str, "torch.Tensor | None"], Callable[[], None]]


def workspace_bytes(rows: int, weights: PackedLinear, activation: str) -> int:
    """Bytes of workspace that the kernel for these weights needs for ``rows`` rows of x."""
    if weights.isa == ROWS:
        from vlakern.ops.linear.triton_launch import scratch_bytes

        return scratch_bytes(rows, weights, activation)
    native, threads = _native.cpu_module(), torch.get_num_threads()
    sizes = (rows, weights.n, weights.k, weights.kind)
    return native.linear_workspace(*sizes, activation, env.cpu_isa(), threads)


def cpu() -> Kernel:
    """The native CPU kernel, on as many threads as torch uses."""
    native, isa = _native.cpu_module(), env.cpu_isa()
    native.selected_isa(isa)  # raises Unsupported here and not in the first call

    def bind(t: Tensors, activation: str, workspace: torch.Tensor | None) -> Callable[[], None]:
        if workspace is None:
            size = workspace_bytes(t.x.shape[0], t.weights, activation)
            workspace = torch.empty(size, dtype=torch.uint8)
        panels, w_scale, bias = t.weights.sections()
        bias = t.bias if t.bias is not None else bias
        given = (t.x, panels, w_scale, bias, t.residual, t.row_scale, t.out, workspace)
        facts = (t.weights.n, t.weights.k, t.weights.kind, activation, isa)
        call = native.Linear(*map(_native.view, given), *facts, torch.get_num_threads())
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
    from vlakern.ops.linear.triton_launch import Product, in_turn, launches

    def bind(t: Tensors, activation: str, workspace: torch.Tensor | None) -> Callable[[], None]:
        product = Product(t.x, t.weights, t.out, activation, t.bias, t.residual, t.row_scale)
        return in_turn(launches(product, workspace), t.x)

    return bind


def reference() -> Kernel:
    """The definition."""
    return lambda t, activation, workspace: partial(_reference, t, activation)


def _reference(t: Tensors, activation: str) -> None:
    weight, scale, bias = t.weights.unpack()
    y = linear_reference(
        t.x,
        weight,
        kind=t.weights.kind,
        w_scale=scale,
        bias=t.bias if t.bias is not None else bias,
        activation=activation,
        residual=t.residual,
        row_scale=t.row_scale,
        out_dtype=t.out.dtype,
    )
    t.out.copy_(y)
