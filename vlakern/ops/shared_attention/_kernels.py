"""The backends of ``shared_attention`` under one signature; each function here makes one."""

from functools import partial

import torch

from vlakern.ops.shared_attention._check import Forward, Gradients, Kernels
from vlakern.ops.shared_attention.reference import (
    shared_attention_gradients,
    shared_attention_reference,
)

__all__ = ["reference"]


def reference() -> Kernels:
    """The definition."""
    return Kernels(partial(partial, _forward), partial(partial, _backward))


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
