"""The definition of ``qkv_prep``: QK-norm, rotary position embedding, and K and V in joint order.

    n = x / sqrt(mean(x²) + eps) · w                  per head, RMSNorm, arXiv 1910.07467, Eq. 4
    y[i] = n[i]·cos[i] - n[i + D/2]·sin[i]             RoPE, arXiv 2104.09864, Eq. 34, on the pairs
    y[i + D/2] = n[i + D/2]·cos[i] + n[i]·sin[i]       (i, i + D/2) in place of (2i, 2i + 1)

where ``w`` is the weight, or 1 plus it; without weights n is x. Letters: T joint rows, E rows of
one expert, H query heads, G key-value heads, D head dim.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Gradients", "compute_dtype", "qkv_prep_gradients", "qkv_prep_reference", "split_heads"]


def compute_dtype(x: Tensor) -> torch.dtype:
    """fp32, or fp64 for an fp64 ``x``."""
    return torch.promote_types(x.dtype, torch.float32)


def split_heads(
    qkv: Sequence[Tensor], experts: int, heads: int, groups: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Views ``[E, H, D]``, ``[E, G, D]``, ``[E, G, D]`` of each expert's q, k and v."""
    shapes = (heads, groups, groups)
    if len(qkv) != experts:
        apart = [_by_heads(x, shapes[i % 3]) for i, x in enumerate(qkv)]
        return list(zip(apart[::3], apart[1::3], apart[2::3], strict=True))
    together = [_by_heads(x, sum(shapes)) for x in qkv]
    return [(x[:, :heads], x[:, heads : heads + groups], x[:, heads + groups :]) for x in together]


def _by_heads(x: Tensor, heads: int) -> Tensor:
    return x.view(x.shape[0], heads, x.shape[1] // heads)


def qkv_prep_reference(
    qkv: Sequence[Tensor],
    q_weight: Sequence[Tensor],
    k_weight: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    rows: Sequence[Tensor],
    *,
    heads: int,
    groups: int,
    eps: float = 1e-6,
    plus_one: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, see ``vlakern.ops.qkv_prep``."""
    parts = split_heads(qkv, len(rows), heads, groups)
    joint = torch.cat([one.long() for one in rows])
    made = []
    for i, (q, k, v) in enumerate(parts):
        angle = (cos[rows[i].long()], sin[rows[i].long()])
        q_w, k_w = (weights[i] if weights else None for weights in (q_weight, k_weight))
        q, k = _prepare(q, q_w, *angle, eps, plus_one), _prepare(k, k_w, *angle, eps, plus_one)
        made.append((q, k, v))
    q, k, v = (torch.cat(one) for one in zip(*made, strict=True))
    return (
        q,
        torch.empty_like(k).index_copy(0, joint, k),
        torch.empty_like(v).index_copy(0, joint, v),
    )


def _prepare(
    x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float, plus_one: bool
) -> Tensor:
    n = x.to(compute_dtype(x))
    if weight is not None:
        n = n * torch.rsqrt(n.square().mean(-1, keepdim=True) + eps) * _factor(weight, n, plus_one)
    return _turn(n, cos[:, None], sin[:, None]).to(x.dtype)


def _factor(weight: Tensor, like: Tensor, plus_one: bool) -> Tensor:
    weight = weight.to(like.dtype)
    return 1 + weight if plus_one else weight


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


class Gradients(NamedTuple):
    """Gradients of one expert's q, k, v and weights, and its rows of those of cos and sin."""

    q: Tensor  # [E, H, D]
    k: Tensor  # [E, G, D]
    v: Tensor  # [E, G, D]
    q_weight: Tensor | None  # [D]
    k_weight: Tensor | None  # [D]
    cos: Tensor  # [E, D / 2]
    sin: Tensor  # [E, D / 2]


def qkv_prep_gradients(
    parts: tuple[Tensor, Tensor, Tensor],
    weights: tuple[Tensor | None, Tensor | None],
    angle: tuple[Tensor, Tensor],
    grads: tuple[Tensor, Tensor, Tensor],
    eps: float,
    plus_one: bool,
) -> Gradients:
    """The derivatives of one expert's part, all tensors by its own rows.

    RoPE turns back by the same angle; with u = dn·w the norm's gradient is
    r·(u - n·mean(u·n)), n before the weight and r the reciprocal root.
    """
    cos, sin = angle
    found = []
    for x, weight, grad in zip(parts[:2], weights, grads[:2], strict=True):
        wide = compute_dtype(x)
        n, g = x.to(wide), grad.to(wide)
        back = _turn(g, cos[:, None], -sin[:, None])
        dx, dw, turned = back, None, n
        if weight is not None:
            r = torch.rsqrt(n.square().mean(-1, keepdim=True) + eps)
            n = n * r
            w = _factor(weight, n, plus_one)
            u = back * w
            dx = r * (u - n * (u * n).mean(-1, keepdim=True))
            dw, turned = (back * n).sum((0, 1)), n * w
        (low, high), (g_low, g_high) = turned.chunk(2, -1), g.chunk(2, -1)
        dcos = (low * g_low + high * g_high).sum(1)
        dsin = (low * g_high - high * g_low).sum(1)
        found.append((dx, dw, dcos, dsin))
    (dq, dq_w, q_cos, q_sin), (dk, dk_w, k_cos, k_sin) = found
    return Gradients(dq, dk, grads[2], dq_w, dk_w, q_cos + k_cos, q_sin + k_sin)
