"""How the PyTorch baseline attends: two products and a softmax, torch's fused kernels, flash-attn.

Dimension letters: B observations or views times groups, H heads of a group, Q queries, K keys, D
head dim.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlakern.errors import Unsupported

__all__ = ["Attend", "Mask", "by_flash_attn", "by_products", "by_sdpa", "mask_of"]


class Mask(NamedTuple):
    """What queries see.

    Attributes:
        added: to the scores, ``[H · Q, K]``.
        kind: fused kernels know ``whole`` and ``causal`` without it.
    """

    added: Tensor
    kind: Literal["whole", "causal", "other"]


# q ``[B, H, Q, D]``, which holds its scale, and k and v ``[B, K, D]`` to ``[B, H, Q, D]``.
Attend = Callable[[Tensor, Tensor, Tensor, Mask | None], Tensor]


def mask_of(seen_QK: Tensor, heads: int, dtype: torch.dtype, device: str) -> Mask:
    """The mask of queries of ``heads`` heads from what each sees."""
    added = torch.zeros(seen_QK.shape, dtype=dtype).masked_fill(~seen_QK, float("-inf"))
    queries, keys = seen_QK.shape
    causal = queries == keys and torch.equal(seen_QK, torch.ones_like(seen_QK).tril())
    kind = "whole" if bool(seen_QK.all()) else "causal" if causal else "other"
    return Mask(added.repeat(heads, 1).to(device), kind)


def by_products(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None) -> Tensor:
    """Two batched products with a softmax between them."""
    rows = q.flatten(1, 2)
    back = k.transpose(1, 2)
    scores = rows @ back if mask is None else torch.baddbmm(mask.added, rows, back)
    return (scores.softmax(-1) @ v).view(q.shape)


def by_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None) -> Tensor:
    """torch's fused attention: FlashAttention where it knows the mask, else with the mask added."""
    if mask is not None and mask.kind == "causal":
        heads = q.shape[1]
        k, v = (one[:, None].expand(-1, heads, -1, -1) for one in (k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    added = mask.added[None, None] if mask is not None and mask.kind == "other" else None
    rows = (q.flatten(1, 2)[:, None], k[:, None], v[:, None])
    out = F.scaled_dot_product_attention(*rows, attn_mask=added, scale=1.0)
    return out.view(q.shape)


def by_flash_attn(device: str) -> Attend:
    """The package flash-attn for the masks that it knows, torch's fused attention for the rest.

    Raises:
        Unsupported: it is not installed, or there is no GPU for it.
    """
    if torch.device(device).type != "cuda":
        raise Unsupported(f"flash-attn needs an NVIDIA GPU, the model is on {device}")
    if find_spec("flash_attn") is None:
        raise Unsupported("flash-attn is not installed; pip install 'vlakern[flash]'")
    return flash_attention(import_module("flash_attn").flash_attn_func)


def flash_attention(function: Callable[..., Tensor]) -> Attend:
    """Around ``flash_attn_func``, whose heads lie behind the rows."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None) -> Tensor:
        if mask is not None and mask.kind == "other":
            return by_sdpa(q, k, v, mask)
        causal = mask is not None and mask.kind == "causal"
        rows = (q.transpose(1, 2), k[:, :, None], v[:, :, None])
        return function(*rows, softmax_scale=1.0, causal=causal).transpose(1, 2)

    return attend
