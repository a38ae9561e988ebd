"""``action_unembed`` in Triton: ``norm``'s kernel, then ``linear``'s."""

from functools import partial

import torch

from vlakern.ops.action_embed._kernels import hidden_dtype
from vlakern.ops.action_unembed._kernels import Tensors
from vlakern.ops.linear.triton_launch import Product, Run, in_turn, launches
from vlakern.ops.norm import _check as norm
from vlakern.ops.norm._triton_launch import launch as launch_norm

__all__ = ["bind"]


def bind(t: Tensors) -> Run:
    """The call; what lies between the kernels gets its memory here."""
    runs: list[Run] = []
    h = t.h
    if t.norm is not None:
        n = t.norm
        h = torch.empty_like(t.h, memory_format=torch.contiguous_format)
        scale, shift = (None if one is None else one[None] for one in (n.scale, n.shift))
        given = norm.Tensors(t.h, n.weight, n.bias, scale, shift, None, None, None, h, None)
        runs.append(partial(launch_norm, given, n.kind, n.eps))
    if t.w_hidden is not None:
        shape = (t.h.shape[0], t.w_hidden.n)
        hidden = torch.empty(shape, dtype=hidden_dtype(t.w_out), device=t.h.device)
        runs += launches(Product(h, t.w_hidden, hidden, "relu"))
        h = hidden
    return in_turn([*runs, *launches(Product(h, t.w_out, t.y))], t.h)
