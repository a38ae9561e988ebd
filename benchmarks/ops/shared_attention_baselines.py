"""What torch offers for shared_attention's cases: the ways in which one writes it."""

from typing import Any

import torch
import torch.nn.functional as F
from plain import Plain
from torch import Tensor, nn

from vlakern.ops.shared_attention.cases import Case, Inputs

__all__ = ["plain", "plain_attention", "rectangle"]


def rectangle(case: Case, given: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v as [R, H or G, tokens, D] and the visible pairs [R, 1, Q, K]; documents are alike."""
    documents = len(case.blocks)
    q = given.q_THD.unflatten(0, (documents, -1)).transpose(1, 2).contiguous()
    found = []
    cached = [given.prefix_k_PGD, given.prefix_v_PGD]
    for own, prefix in zip((given.k_SGD, given.v_SGD), cached, strict=True):
        side = own.unflatten(0, (documents, -1))
        if prefix is not None:
            before = prefix.unflatten(0, (len(case.prefixes), -1))[list(case.index)]
            side = torch.cat([before, side], dim=1)
        found.append(side.transpose(1, 2).contiguous())
    end = given.who.kv_end.unflatten(0, (documents, -1))
    return q, *found, (torch.arange(found[0].shape[2]) < end[:, :, None])[:, None]


def plain_attention(case: Case, given: Inputs) -> Tensor:
    """Torch's own attention in the inputs' dtype, as ``[T, H, D]``."""
    q, k, v, visible = rectangle(case, given)
    plain = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
    return plain.transpose(1, 2).flatten(0, 1)


class Sdpa(nn.Module):
    """scaled_dot_product_attention, of key-value heads that are shared or stand once per head."""

    mask: Tensor | None

    def __init__(self, mask: Tensor | None, gqa: bool):
        super().__init__()
        self.gqa = gqa
        self.register_buffer("mask", mask)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self.gqa and k.shape[1] < q.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        words: Any = {"enable_gqa": True} if self.gqa else {}
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, **words)


class ByHand(nn.Module):
    """matmul, softmax, matmul; the queries that share a head are rows of one matrix."""

    bias: Tensor | None

    def __init__(self, mask: Tensor | None, share: int):
        super().__init__()
        self.share, bias = share, None
        if mask is not None:
            hidden = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
            bias = hidden.repeat(1, 1, share, 1)
        self.register_buffer("bias", bias)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tall = q.unflatten(1, (k.shape[1], self.share)).flatten(2, 3)
        score = torch.matmul(tall, k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        if self.bias is not None:
            score = score + self.bias
        y = torch.matmul(score.softmax(-1), v)
        return y.unflatten(2, (self.share, -1)).flatten(1, 2)


def plain(case: Case, given: Inputs, backward: bool) -> Plain:
    """Every way, on inputs that are laid out for it before the clock starts."""
    q, k, v, visible = rectangle(case, given)
    mask, share = None if bool(visible.all()) else visible, case.heads // case.groups
    modules: dict[str, nn.Module] = {"sdpa": Sdpa(mask, gqa=False), "by hand": ByHand(mask, share)}
    wide = [x if backward else x.repeat_interleave(share, 1) for x in (k, v)]
    inputs = {"sdpa": (q, *wide), "by hand": (q, k, v)}
    if share > 1:
        modules["sdpa gqa"], inputs["sdpa gqa"] = Sdpa(mask, gqa=True), (q, k, v)
    return Plain(modules, inputs, passes="backward" if backward else "forward")
