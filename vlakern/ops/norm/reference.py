"""The definition of ``norm``: residual add, normalisation over the last dimension, modulation.

    h = x + gate · residual                        (x without a residual)
    n = h / sqrt(mean(h²) + eps)                    RMSNorm, arXiv 1910.07467, Eq. 4
    n = (h - mean(h)) / sqrt(var(h) + eps)          LayerNorm, arXiv 1607.06450, Eq. 3
    y = (w · n + bias) · (1 + scale) + shift        adaptive norm, arXiv 2212.09748, Section 3.2

where ``w`` is the weight, 1 plus the weight for ``rms_plus_one`` (Gemma), 1 without a weight.
Letters: R rows, M width, B groups of rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "KINDS",
    "Gradients",
    "compute_dtype",
    "group_of_rows",
    "norm_gradients",
    "norm_reference",
]

KINDS = ("rms", "rms_plus_one", "layer")


def compute_dtype(x: Tensor) -> torch.dtype:
    """fp32, or fp64 for an fp64 ``x``."""
    return torch.promote_types(x.dtype, torch.float32)


def group_of_rows(rows: int, groups: int, row_group: Tensor | None, device: torch.device) -> Tensor:
    """The group of every row, int64 ``[R]``: as told, or equal runs of rows."""
    if row_group is not None:
        return row_group.long()
    return torch.arange(rows, device=device) // max(rows // groups, 1)


def norm_reference(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    kind: str = "rms",
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    row_group: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """y and h, see ``vlakern.ops.norm``; h is rounded to x's dtype before it is normalised."""
    wide = compute_dtype(x)
    of_row = _of_row(x, row_group)
    h = x
    if residual is not None:
        added = residual.to(wide)
        h = (x.to(wide) + (added if gate is None else of_row(gate) * added)).to(x.dtype)
    y = _normalise(h.to(wide), kind, eps)[0]
    if weight is not None:
        y = y * _factor(weight.to(wide), kind)
    if bias is not None:
        y = y + bias.to(wide)
    if scale is not None:
        y = y * (1 + of_row(scale))
    if shift is not None:
        y = y + of_row(shift)
    return y.to(x.dtype), h


class Gradients(NamedTuple):
    """Gradients in the compute dtype; None where there was no argument."""

    x: Tensor
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    gate: Tensor | None


def norm_gradients(
    grad_y: Tensor,
    grad_h: Tensor | None,
    h: Tensor,
    weight: Tensor | None,
    *,
    kind: str,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    gate: Tensor | None,
    row_group: Tensor | None,
    eps: float,
) -> Gradients:
    """The derivatives of ``norm_reference``; ``scale`` and ``shift`` as its ``[B, M]``.

    With u = dy·(1 + scale)·w and n as above, dh = dh' + r·(u - n·mean(u·n) - mean(u)), the last
    term for LayerNorm alone, r the reciprocal root, dh' what h's own readers send back.
    """
    wide = compute_dtype(h)
    of_row = _of_row(h, row_group)
    dy, w = grad_y.to(wide), None if weight is None else _factor(weight.to(wide), kind)
    n, r = _normalise(h.to(wide), kind, eps)
    modulated = dy if scale is None else dy * (1 + of_row(scale))
    u = modulated if w is None else modulated * w
    dh = r * (u - n * (u * n).mean(-1, keepdim=True))
    if kind == "layer":
        dh = dh - r * u.mean(-1, keepdim=True)
    if grad_h is not None:
        dh = dh + grad_h.to(wide)
    affine = n if w is None else n * w
    affine = affine if bias is None else affine + bias.to(wide)
    to_groups = _to_groups(h, row_group)
    added = None if residual is None else residual.to(wide)
    return Gradients(
        x=dh,
        residual=None if added is None else dh if gate is None else dh * of_row(gate),
        weight=None if weight is None else (modulated * n).sum(0),
        bias=None if bias is None else modulated.sum(0),
        scale=None if scale is None else to_groups(dy * affine, scale),
        shift=None if shift is None else to_groups(dy, shift),
        gate=None if gate is None or added is None else to_groups(dh * added, gate),
    )


def _normalise(h: Tensor, kind: str, eps: float) -> tuple[Tensor, Tensor]:
    if kind == "layer":
        h = h - h.mean(-1, keepdim=True)
    r = torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    return h * r, r


def _factor(weight: Tensor, kind: str) -> Tensor:
    return 1 + weight if kind == "rms_plus_one" else weight


def _of_row(x: Tensor, row_group: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Rows of a modulation ``[M]`` or ``[B, M]``, in the compute dtype."""

    def of_row(modulation: Tensor) -> Tensor:
        modulation = modulation.to(compute_dtype(x))
        if modulation.ndim == 1:
            return modulation
        return modulation[group_of_rows(len(x), len(modulation), row_group, x.device)]

    return of_row


def _to_groups(x: Tensor, row_group: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    """Sums over the rows that share a row of the modulation."""

    def to_groups(gradient: Tensor, modulation: Tensor) -> Tensor:
        if modulation.ndim == 1:
            return gradient.sum(0)
        groups = group_of_rows(len(x), len(modulation), row_group, x.device)
        return gradient.new_zeros(modulation.shape).index_add_(0, groups, gradient)

    return to_groups
