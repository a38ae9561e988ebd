"""The definition of ``action_unembed``: tokens to velocities, with an optional final norm.

    y = W2·relu(W1·n(h) + b1) + b2      or, without W1, y = W2·n(h) + b2

where n is the norm of ``vlakern.ops.norm`` or nothing (arXiv 2602.09722 has the first form, pi0 and
SmolVLA the second with RMSNorm). Letters: N rows, M width, F hidden columns, A slots.
"""

import torch
from torch import Tensor

from vlakern.ops.action_embed.reference import compute_dtype
from vlakern.ops.norm.reference import norm_reference

__all__ = ["action_unembed_reference"]


def action_unembed_reference(
    h: Tensor,
    w_hidden: Tensor | None,
    b_hidden: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    *,
    norm: str | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-6,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``y [N, A]`` of h ``[N, M]``; the norm is ``rms``, ``rms_plus_one``, ``layer`` or None."""
    dtype = compute_dtype(h)
    z = h.to(dtype)
    if norm is not None:
        given = {"bias": norm_bias, "scale": scale, "shift": shift}
        z = norm_reference(z, norm_weight, kind=norm, **given, eps=eps)[0]
    if w_hidden is not None:
        z = _linear(z, w_hidden, b_hidden).relu()
    return _linear(z, w_out, b_out).to(out_dtype or h.dtype)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = x @ weight.to(x.dtype).T
    return y if bias is None else y + bias.to(x.dtype)
