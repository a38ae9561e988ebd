"""The backends of ``action_embed`` under one signature; each function here makes one kernel.

A kernel binds tensors to a call without arguments, which may be made again and again on the same
memory.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vlakern import env
from vlakern.ops import _native
from vlakern.ops.action_embed.reference import action_embed_reference
from vlakern.ops.linear._kernels import workspace_bytes
from vlakern.ops.linear.packed import PackedLinear

__all__ = ["Held", "Tensors", "cpu", "dense", "hidden_dtype", "packed", "reference", "triton"]


class Tensors(NamedTuple):
    """What every backend takes. Letters: N rows, A slots, M width."""

    x: Tensor  # [N, A]
    w_in: PackedLinear  # M rows, A
    time: Tensor  # [M] fp32, or [N, M] in fp32, without w_out in y's dtype
    w_out: PackedLinear | None  # M rows, M
    y: Tensor  # [N, M]


Kernel = Callable[[Tensors], Callable[[], None]]


class Held:
    """A native call and the memory that it holds only the addresses of."""

    def __init__(self, call: Callable[[], None], memory: object) -> None:
        self.call = call
        self.memory = memory

    def __call__(self) -> None:
        self.call()


def packed(weights: PackedLinear | None, bias: Tensor | None = None) -> tuple[object, ...] | None:
    """What native code takes for packed weights, with a bias of their own or another."""
    if weights is None:
        return None
    panels, scale, own = weights.sections()
    views = map(_native.view, (panels, scale, own if bias is None else bias))
    return (*views, weights.n, weights.k, weights.kind)


def hidden_dtype(weights: PackedLinear) -> torch.dtype:
    """What the weights take without rounding it again."""
    return torch.bfloat16 if weights.kind == "bf16" else torch.float32


def cpu() -> Kernel:
    """The native CPU kernel, on as many threads as torch uses."""
    native, isa = _native.cpu_module(), env.cpu_isa()
    native.selected_isa(isa)  # raises Unsupported here and not in the first call

    def bind(t: Tensors) -> Callable[[], None]:
        rows, shared, hidden = t.x.shape[0], t.time.ndim == 1, None
        size = workspace_bytes(rows, t.w_in, "none")
        if t.w_out is not None:
            dtype = hidden_dtype(t.w_out) if shared else torch.float32
            hidden = torch.empty((rows, t.w_in.n), dtype=dtype)
            size = max(size, workspace_bytes(rows, t.w_out, "none"))
            size = max(size, workspace_bytes(rows, t.w_in, "silu"))
        workspace = torch.empty(size, dtype=torch.uint8)
        first = packed(t.w_in, t.time if shared else None)
        views = (None if shared else _native.view(t.time), packed(t.w_out), _native.view(hidden))
        ends = map(_native.view, (t.y, workspace))
        given = (_native.view(t.x), first, *views, *ends)
        call = native.ActionEmbed(*given, isa, torch.get_num_threads())
        return Held(call, (t, hidden, workspace))

    return bind


def triton() -> Kernel:
    """The Triton kernels."""
    from vlakern.ops.action_embed.triton_kernels import bind

    return bind


def reference() -> Kernel:
    """The definition, with weights as they were rounded or quantised."""
    return lambda t: partial(_reference, t)


def _reference(t: Tensors) -> None:
    w_in, w_out, b_out = dense(t.w_in)[0], None, None
    if t.w_out is not None:
        w_out, b_out = dense(t.w_out)
    t.y.copy_(action_embed_reference(t.x, w_in, t.time, w_out, b_out, t.y.dtype))


def dense(weights: PackedLinear) -> tuple[Tensor, Tensor | None]:
    """Weights ``[N, K]`` and bias of packed ones; int8 is refused before."""
    unpacked = weights.unpack()
    return unpacked.weight, unpacked.bias
