"""The backends of ``shared_attention`` under one signature; each function here makes one."""

from collections.abc import Callable
from functools import partial

import torch

from vlakern import env
from vlakern.ops import _native
from vlakern.ops.shared_attention._check import Forward, Gradients, Kernels
from vlakern.ops.shared_attention.reference import (
    shared_attention_gradients,
    shared_attention_reference,
)

__all__ = ["cpu", "reference", "triton"]


def cpu() -> Kernels:
    """The native CPU kernels, on as many threads as torch uses; always deterministic."""
    native, isa = _native.cpu_module(), env.cpu_isa()
    native.selected_isa(isa)  # raises Unsupported here and not in the first call

    def forward(f: Forward) -> Callable[[], None]:
        threads = torch.get_num_threads()
        *given, out, lse = _views(f)
        packed = _native.view(f.packed)
        return partial(native.shared_attention, *given, packed, out, lse, f.scale, isa, threads)

    def backward(g: Gradients) -> Callable[[], None]:
        f, threads = g.forward, torch.get_num_threads()
        given = [_native.view(tensor) for tensor in g[1:]]
        return partial(native.shared_attention_backward, *_views(f), *given, f.scale, isa, threads)

    return Kernels(forward, backward)


def _views(f: Forward) -> list[_native.View | None]:
    who = (f.who.cu_q, f.who.cu_k, f.who.kv_end, f.who.cu_prefix, f.who.prefix_index)
    given = (f.q, f.k, f.v, *who, f.prefix_k, f.prefix_v, f.rows, f.out, f.lse)
    return [_native.view(tensor) for tensor in given]


def reference() -> Kernels:
    """The definition."""
    return Kernels(partial(partial, _forward), partial(partial, _backward))


def triton() -> Kernels:
    """The Triton kernels."""
    from vlakern.ops.shared_attention.triton_launch import backward, forward

    return Kernels(forward, backward)


def _forward(f: Forward) -> None:
    with torch.no_grad(), torch.autocast(f.q.device.type, enabled=False):
        out, lse = shared_attention_reference(*f[:6], rows=f.rows, scale=f.scale)
    f.out.copy_(out)
    f.lse.copy_(lse)


def _backward(g: Gradients) -> None:
    f = g.forward
    with torch.no_grad(), torch.autocast(f.q.device.type, enabled=False):
        found = shared_attention_gradients(
            g.grad_out, g.grad_lse, *f[:6], rows=f.rows, scale=f.scale
        )
    for gradient, exact in zip(g[3:], found, strict=True):
        if gradient is not None and exact is not None:
            gradient.copy_(exact)
