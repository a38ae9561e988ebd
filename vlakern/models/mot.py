"""The Mixture-of-Transformers: two experts, one shared attention in every layer.

Each expert keeps its own rows contiguous; the joint order of a document's tokens is only an index.
Dimension letters: T joint rows, E rows of one expert, M model width, H query heads, G key-value
heads, D head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlakern.models.config import MoTConfig
from vlakern.models.expert import AdaptiveNorm, Expert, KeyValues
from vlakern.ops.qkv_prep import qkv_prep
from vlakern.ops.shared_attention import KvEnd, shared_attention

__all__ = ["KeyValues", "Layout", "MoT", "rotary"]


@dataclass(frozen=True)
class Layout:
    """Where every token stands.

    Attributes:
        semantic_rows, action_rows: int64, the joint row of each expert's tokens, ascending.
        positions: int64 ``[T]``, RoPE position of every joint row.
        who: the visible ranges of the joint rows.
        alone: of action rows, positions and ranges in layers in which they see the prefix alone.
        apart: of whole documents, their prefixes and their actions as two layouts.
    """

    semantic_rows: Tensor
    action_rows: Tensor
    positions: Tensor
    who: KvEnd
    alone: "Layout | None" = None
    apart: "tuple[Layout, Layout] | None" = None


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin ``[T, D / 2]`` fp32 of rotary position embedding (arXiv 2104.09864)."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim
    angle = positions.double()[:, None] * theta**-exponent
    return angle.cos().float(), angle.sin().float()


class MoT(nn.Module):
    """Runs both experts over packed documents; either may have no rows.

    Attributes:
        recompute: backward computes every layer again instead of keeping what is inside it.
    """

    def __init__(self, config: MoTConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.semantic = Expert(config, config.semantic)
        self.action = Expert(config, config.action, crosses=True)

    def forward(
        self,
        semantic_EM: Tensor,
        action_EM: Tensor,
        layout: Layout,
        prefix: Sequence[KeyValues] | None = None,
        condition_BM: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, tuple[KeyValues, ...]]:
        """One pass over all layers.

        Args:
            semantic_EM, action_EM: embedded tokens of each expert, in the order of its rows.
            layout: their joint order and what they see.
            prefix: keys and values per layer that ``layout.who`` continues.
            condition_BM: of adaptive norms, for B equal runs of the action expert's rows.

        Returns:
            The final-normed rows of the semantic and of the action expert, and the keys and values
            that this pass made, per layer.
        """
        streams, made = self._run(semantic_EM, action_EM, layout, prefix, condition_BM)
        ends = {stream.expert: stream for stream in streams}
        rows = [
            ends[expert].normed(expert.norm)[0] if expert in ends else given
            for expert, given in ((self.semantic, semantic_EM), (self.action, action_EM))
        ]
        return rows[0], rows[1], made

    def keys_values(
        self, semantic_EM: Tensor, action_EM: Tensor, layout: Layout
    ) -> tuple[KeyValues, ...]:
        """The keys and values that :meth:`forward` makes, and nothing that only its rows need."""
        return self._run(semantic_EM, action_EM, layout, None, None, keys_only=True)[1]

    def _run(
        self,
        semantic_EM: Tensor,
        action_EM: Tensor,
        layout: Layout,
        prefix: Sequence[KeyValues] | None,
        condition_BM: Tensor | None,
        keys_only: bool = False,
    ) -> tuple[tuple["Stream", ...], tuple[KeyValues, ...]]:
        """All layers; with ``keys_only`` the last one stops at its keys and values."""
        config = self.config
        streams = (
            Stream(self.semantic, semantic_EM),
            Stream(self.action, action_EM, condition_BM=condition_BM),
        )
        places = _places(config, layout, [bool(len(stream.x_EM)) for stream in streams])
        streams = tuple(stream for stream in streams if stream.x_EM.shape[0])
        again = self.recompute and torch.is_grad_enabled()
        made = []
        for i in range(config.layers):
            stop = keys_only and i == config.layers - 1
            cached = prefix[i] if prefix is not None else None
            given = (i, streams, places, cached, stop)
            layer = self._cross_layer if config.crosses(i) else self._layer
            if again:
                # Nothing here is random, so there is no state of a generator to put back.
                found = checkpoint(layer, *given, use_reentrant=False, preserve_rng_state=False)
                assert found is not None
                streams, own = found
            else:
                streams, own = layer(*given)
            made.append(own)
        return streams, tuple(made)

    def _layer(
        self,
        layer: int,
        streams: tuple["Stream", ...],
        places: "_Places",
        cached: KeyValues | None,
        stop: bool,
    ) -> tuple[tuple["Stream", ...], KeyValues]:
        """Streams after one layer, and its keys and values."""
        place = places.joint
        streams, q, k, v = self._attention_inputs(layer, streams, place, "kv" if stop else "qkv")
        if stop:
            return streams, KeyValues(k, v)
        return self._attend(layer, streams, place, (q, k, v), cached), KeyValues(k, v)

    def _cross_layer(
        self,
        layer: int,
        streams: tuple["Stream", ...],
        places: "_Places",
        cached: KeyValues | None,
        stop: bool,
    ) -> tuple[tuple["Stream", ...], KeyValues]:
        """The same where the actions see the prefix alone, as the action expert projects it."""
        ends, seen = [], cached
        for stream in streams:
            if stream.expert is self.semantic:
                place = places.prefix
                (stream,), q, k, v = self._attention_inputs(
                    layer, (stream,), place, "kv" if stop else "qkv"
                )
                seen = self.action.layer(layer).of(KeyValues(k, v))
                if not stop:
                    (stream,) = self._attend(layer, (stream,), place, (q, k, v), None)
            else:
                assert seen is not None
                (stream,), q, k, v = self._attention_inputs(layer, (stream,), places.alone, "q")
                own = (q, k[:0], v[:0])
                (stream,) = self._attend(layer, (stream,), places.alone, own, seen)
            ends.append(stream)
        assert seen is not None
        return tuple(ends), seen

    def _attend(
        self,
        layer: int,
        streams: tuple["Stream", ...],
        place: "_Place",
        qkv: tuple[Tensor, Tensor, Tensor],
        cached: KeyValues | None,
    ) -> tuple["Stream", ...]:
        """Streams after attention and what follows it."""
        before = (cached.k_TGD, cached.v_TGD) if cached is not None else (None, None)
        out_EHD, _ = shared_attention(*qkv, place.who, *before, rows=place.order)
        outs = out_EHD.split([len(stream.x_EM) for stream in streams])
        return tuple(s.advance(layer, out) for s, out in zip(streams, outs, strict=True))

    def _attention_inputs(
        self,
        layer: int,
        streams: tuple["Stream", ...],
        place: "_Place",
        wanted: Literal["qkv", "kv", "q"],
    ) -> tuple[tuple["Stream", ...], Tensor, Tensor, Tensor]:
        """Streams after their additions, q in the experts' order, k and v in joint order."""
        blocks = [stream.expert.layer(layer) for stream in streams]
        normed = [
            stream.normed(block.input_norm) for block, stream in zip(blocks, streams, strict=True)
        ]
        parts = [
            getattr(block, wanted)(h_EM) for block, (h_EM, _) in zip(blocks, normed, strict=True)
        ]
        keys_only = wanted == "kv"
        q_norms = [block.q_norm.weight for block in blocks if self.config.qk_norm]
        wide = torch.promote_types(parts[0][0].dtype, torch.float32)
        q, k, v = qkv_prep(
            [one for part in parts for one in part],
            [one.detach() for one in q_norms] if keys_only else q_norms,
            [block.k_norm.weight for block in blocks if self.config.qk_norm],
            place.cos.to(wide),
            place.sin.to(wide),
            place.rows,
            heads=self.config.kv_heads if keys_only else self.config.q_heads,
            groups=self.config.kv_heads,
            eps=self.config.norm_eps,
        )
        return tuple(stream for _, stream in normed), q, k, v


@dataclass(frozen=True)
class _Place:
    """A layout as a layer's ops take it.

    Attributes:
        cos, sin: of the joint rows.
        rows: int32, the joint rows of each stream.
        order: int32, joint row t is row ``order[t]`` of the streams' rows laid end to end; None for
            one stream.
    """

    cos: Tensor
    sin: Tensor
    who: KvEnd
    rows: list[Tensor]
    order: Tensor | None


@dataclass(frozen=True)
class _Places:
    """``joint`` of all streams; where layers cross, of the semantic and of the action one."""

    joint: _Place
    prefix: _Place
    alone: _Place


def _places(config: MoTConfig, layout: Layout, there: list[bool]) -> _Places:
    """``there``: which of the semantic and the action expert have rows."""
    joint = _place(config, layout, there)
    if not config.cross_every:
        return _Places(joint, joint, joint)
    if layout.apart is not None:
        prefix, actions = layout.apart
        assert actions.alone is not None
        alone = _place(config, actions.alone, [False, True])
        return _Places(joint, _place(config, prefix, [True, False]), alone)
    alone = joint if layout.alone is None else _place(config, layout.alone, [False, True])
    return _Places(joint, joint, alone)


def _place(config: MoTConfig, layout: Layout, there: list[bool]) -> _Place:
    cos, sin = rotary(layout.positions, config.head_dim, config.rope_theta)
    rows = (layout.semantic_rows.int(), layout.action_rows.int())
    kept = [one for one, is_there in zip(rows, there, strict=True) if is_there]
    order = torch.cat(kept).argsort().int() if len(kept) > 1 else None
    return _Place(cos, sin, layout.who, kept, order)


@dataclass(frozen=True)
class Stream:
    """One expert's residual stream, in two parts until the next norm adds them.

    Attributes:
        x_EM: the stream before the last block.
        added_EM: what the last block adds, None for nothing.
        gate_BM: what that is multiplied with, None for 1.
        condition_BM: of adaptive norms, for B equal runs of rows.
    """

    expert: Expert
    x_EM: Tensor
    added_EM: Tensor | None = None
    gate_BM: Tensor | None = None
    condition_BM: Tensor | None = None

    def normed(self, module: nn.Module) -> tuple[Tensor, "Stream"]:
        """Normed rows, and the stream after the addition."""
        if isinstance(module, AdaptiveNorm):
            assert self.condition_BM is not None
            given = (self.x_EM, self.added_EM, self.gate_BM, self.condition_BM)
            h_EM, x_EM, gate_BM = module(*given)
        else:
            (h_EM, x_EM), gate_BM = module(self.x_EM, self.added_EM), None
        return h_EM, replace(self, x_EM=x_EM, added_EM=None, gate_BM=gate_BM)

    def advance(self, layer: int, attention_EHD: Tensor) -> "Stream":
        """The stream after the output projection and the MLP."""
        block = self.expert.layer(layer)
        attended = replace(self, added_EM=block.o_proj(attention_EHD.flatten(1)))
        h_EM, after = attended.normed(block.post_norm)
        return replace(after, added_EM=block.mlp(h_EM))
