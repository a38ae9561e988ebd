"""The plain PyTorch form of a training step: a dense batch, padded to its longest document.

Each sample is one sequence: its prefix and the chunks of all its flow samples, which see the prefix
and themselves through a boolean mask. So the prefix is computed once here, too. Weights are those
of the packed network, so that both can be compared number by number.

Dimension letters: B samples, N flow samples, S padded semantic tokens, C = N · H action tokens,
T = S + 1 + C all tokens, V views of a sample, M width, D head dim, P half of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlakern.data.collate import TrainBatch
from vlakern.models import VLA
from vlakern.models.config import VLAConfig
from vlakern.models.mot import rotary
from vlakern.train.step import Foresight

__all__ = ["PaddedBatch", "loss", "pad"]

Attend = Callable[..., Tensor]


@dataclass(frozen=True)
class PaddedBatch:
    """What a loader with padding hands over.

    Attributes:
        pixels_V3SS: every view of every sample, or those that were not dropped.
        place_BS: row of ``[text | image tokens]`` for each semantic token; row 0 for padding.
        cos_BTP, sin_BTP: rotary angles.
        mask_BTT: which token sees which; padding sees itself.
        view_rows: the sample that each view belongs to; ``seen_V`` is 0 for a dropped view.
    """

    pixels_V3SS: Tensor
    tokens_L: Tensor
    place_BS: Tensor
    state_BS: Tensor
    action_BHA: Tensor
    loss_mask_BHA: Tensor
    outcome_BS: Tensor
    view_rows: Tensor
    seen_V: Tensor
    cos_BTP: Tensor
    sin_BTP: Tensor
    mask_BTT: Tensor


def pad(config: VLAConfig, batch: TrainBatch, samples: int, all_views: bool = True) -> PaddedBatch:
    """The same samples with padding.

    Args:
        samples: N.
        all_views: dropped views are black pictures that are encoded and then masked, as a dense
            batch of pictures has them; else only the others are encoded.
    """
    prefix, layout = batch.prefix, batch.prefix.layout
    count, each = len(batch.action_BHA), config.vision.tokens
    words = len(prefix.tokens_L)
    views = torch.bincount(batch.view_rows, minlength=count)
    most = int(views.max())
    first = torch.cat([views.new_zeros(1), views.cumsum(0)[:-1]])
    slot_V = batch.view_rows * most + torch.arange(len(batch.view_rows)) - first[batch.view_rows]
    pixels, view_rows, seen = prefix.pixels_V3SS, batch.view_rows, torch.ones(len(batch.view_rows))
    if all_views:
        pixels = prefix.pixels_V3SS.new_zeros(count * most, *prefix.pixels_V3SS.shape[1:])
        pixels[slot_V] = prefix.pixels_V3SS
        view_rows = torch.arange(count).repeat_interleave(most)
        seen = torch.zeros(count * most).index_fill(0, slot_V, 1.0)
    document_E = torch.searchsorted(prefix.cu_prefix, layout.semantic_rows, right=True) - 1
    lengths = torch.bincount(document_E, minlength=count)
    longest, chunk = int(lengths.max()), config.chunk
    total = longest + 1 + samples * chunk
    place = torch.zeros(count, longest, dtype=torch.int64)
    position = torch.zeros(count, total, dtype=torch.int64)
    sees = torch.zeros(count, total, total, dtype=torch.bool)
    for b in range(count):
        rows = layout.semantic_rows[document_E == b]
        order = prefix.semantic_order[document_E == b]
        if all_views:
            image = (order - words).clamp(min=0)
            padded_image = slot_V[image // each] * each + image % each
            order = torch.where(order < words, order, words + padded_image)
        place[b, : len(order)] = order
        begin = int(prefix.cu_prefix[b])
        length = int(prefix.cu_prefix[b + 1]) - begin
        # Columns in the order of the document's tokens.
        at = torch.cat([rows, layout.action_rows[b : b + 1]]) - begin
        column = torch.cat([torch.arange(len(rows)), torch.tensor([longest])])
        position[b, column] = at
        kv_end = layout.who.kv_end[begin + at]
        sees[b, column[:, None], column] = at < kv_end[:, None]
        step = torch.arange(chunk)
        own = step[:, None] >= step if config.mask.actions == "causal" else torch.ones(chunk, chunk)
        for n in range(samples):
            here = longest + 1 + n * chunk + step
            position[b, here] = length + step
            sees[b, here[:, None], column] = True
            sees[b, here[:, None], here] = own.bool()
    sees |= torch.eye(total, dtype=torch.bool)
    cos, sin = rotary(position.flatten(), config.mot.head_dim, config.mot.rope_theta)
    return PaddedBatch(
        pixels,
        prefix.tokens_L,
        place,
        prefix.state_RS,
        batch.action_BHA,
        batch.mask_BHA,
        batch.outcome_BS,
        view_rows,
        seen,
        cos.unflatten(0, (count, total)),
        sin.unflatten(0, (count, total)),
        sees,
    )


def loss(
    model: VLA,
    batch: PaddedBatch,
    noise_BNHA: Tensor,
    tau_BN: Tensor,
    foresight: Foresight | None = None,
    weight: float = 0.0,
    explicit: bool = False,
) -> Tensor:
    """The masked flow-matching loss, and foresight's with its weight.

    ``explicit`` attention is two products and a softmax, which torch differentiates faster on CPUs
    than its fused kernel.
    """
    action = batch.action_BHA[:, None]
    share = tau_BN[..., None, None]
    x = (1 - share) * noise_BNHA + share * action
    views_VKM = model.vision(batch.pixels_V3SS)
    attend = _explicit if explicit else F.scaled_dot_product_attention
    velocity = _velocity(model, batch, views_VKM, x, tau_BN, attend)
    mask = batch.loss_mask_BHA[:, None].expand_as(x)
    error = (velocity.float() - (action - noise_BNHA)).square() * mask
    total = error.sum() / (mask.sum() + 1e-8)
    if foresight is not None:
        found = foresight.head(views_VKM.flatten(1)).float()
        apart = (found - batch.outcome_BS[batch.view_rows]).square().mean(1) * batch.seen_V
        total = total + weight * apart.sum() / batch.seen_V.sum()
    return total


def _explicit(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~attn_mask, float("-inf"))
    return scores.softmax(dim=-1).to(v.dtype) @ v


def _velocity(
    model: VLA, batch: PaddedBatch, views_VKM: Tensor, x: Tensor, tau: Tensor, attend: Attend
) -> Tensor:
    """dx/dτ ``[B, N, H, A]``."""
    samples = x.shape[1]
    text = model.embed_tokens(batch.tokens_L).to(views_VKM.dtype)
    semantic = torch.cat([text, views_VKM.flatten(0, 1)])[batch.place_BS]
    state = model.state_encoder(batch.state_BS)[:, None]
    tau_RH = tau.flatten()[:, None].expand(-1, x.shape[2])
    actions = (
        model.action_encoder(x.flatten(0, 1), tau_RH).unflatten(0, (-1, samples)).flatten(1, 2)
    )
    own = torch.cat([state, actions], dim=1)
    layers = model.mot.config.layers
    for i in range(layers):
        semantic, own = _layer(model, i, batch, semantic, own, i == layers - 1, attend)
    hidden = _rms(own[:, 1:], model.mot.action.norm)
    return model.action_decoder(hidden).unflatten(1, (samples, -1))


def _layer(
    model: VLA,
    i: int,
    batch: PaddedBatch,
    semantic: Tensor,
    own: Tensor,
    last: bool,
    attend: Attend,
) -> tuple[Tensor, Tensor]:
    """One layer of both experts; the last one's prefix gives keys and values alone."""
    blocks: list[Any] = [model.mot.semantic.layers[i], model.mot.action.layers[i]]
    heads, groups = model.mot.config.q_heads, model.mot.config.kv_heads
    qs, ks, vs = [], [], []
    for block, x in zip(blocks, (semantic, own), strict=True):
        h = _rms(x, block.input_norm)
        ks.append(_rms(block.k_proj(h).unflatten(-1, (groups, -1)), block.k_norm))
        vs.append(block.v_proj(h).unflatten(-1, (groups, -1)))
        if not (last and block is blocks[0]):
            qs.append(_rms(block.q_proj(h).unflatten(-1, (heads, -1)), block.q_norm))
    q, k, v = torch.cat(qs, 1), torch.cat(ks, 1), torch.cat(vs, 1)
    cos, sin, mask = batch.cos_BTP, batch.sin_BTP, batch.mask_BTT
    rows = q.shape[1]
    q = _turned(q, cos[:, -rows:], sin[:, -rows:]).to(v.dtype)
    k = _turned(k, cos, sin).to(v.dtype)
    out = attend(
        q.transpose(1, 2),
        k.transpose(1, 2).repeat_interleave(heads // groups, 1),
        v.transpose(1, 2).repeat_interleave(heads // groups, 1),
        attn_mask=mask[:, None, -rows:],
    )
    out = out.transpose(1, 2).flatten(2)
    if last:
        return semantic, _rest(blocks[1], own, out)
    split = semantic.shape[1]
    return _rest(blocks[0], semantic, out[:, :split]), _rest(blocks[1], own, out[:, split:])


def _rest(block: Any, x: Tensor, out: Tensor) -> Tensor:
    x = x + block.o_proj(out)
    h = _rms(x, block.post_norm)
    return x + block.down_proj(F.silu(block.gate_proj(h)) * block.up_proj(h))


def _rms(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], norm.weight.to(x.dtype), norm.eps)


def _turned(x_BTHD: Tensor, cos_BTP: Tensor, sin_BTP: Tensor) -> Tensor:
    first, second = x_BTHD.chunk(2, dim=-1)
    cos, sin = cos_BTP[:, :, None], sin_BTP[:, :, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
