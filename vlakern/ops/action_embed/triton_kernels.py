"""``action_embed`` in Triton: ``linear``'s kernels, with the time as the bias of every row."""

import torch

from vlakern.ops.action_embed._kernels import Tensors, hidden_dtype
from vlakern.ops.linear.triton_launch import Product, Run, in_turn, launches

__all__ = ["bind"]


def bind(t: Tensors) -> Run:
    """The call; the hidden layer gets its memory here."""
    if t.w_out is None:
        return in_turn(launches(Product(t.x, t.w_in, t.y, bias=t.time)), t.x)
    rows = t.x.shape[0]
    hidden = torch.empty((rows, t.w_in.n), dtype=hidden_dtype(t.w_out), device=t.x.device)
    runs = launches(Product(t.x, t.w_in, hidden, "silu", bias=t.time))
    return in_turn([*runs, *launches(Product(hidden, t.w_out, t.y))], t.x)
