"""The Mixture-of-Transformers: two experts, one shared attention in every layer.

Each expert keeps its own rows contiguous; the joint order of a document's tokens is only an index.
Dimension letters: T joint rows, E rows of one expert, M model width, H query heads, G key-value
heads, D head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlakern.models.config import ExpertConfig, MoTConfig
from vlakern.ops.norm import norm
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
    """

    semantic_rows: Tensor
    action_rows: Tensor
    positions: Tensor
    who: KvEnd


@dataclass(frozen=True)
class KeyValues:
    """Keys (normalised and rotated) and values of one layer: ``[T, G, D]`` each."""

    k_TGD: Tensor
    v_TGD: Tensor


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin ``[T, D / 2]`` fp32 of rotary position embedding (arXiv 2104.09864)."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim
    angle = positions.double()[:, None] * theta**-exponent
    return angle.cos().float(), angle.sin().float()


class RMSNorm(nn.Module):
    """h = x + residual, and h / rms(h) * weight, the root mean square in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return norm(x, self.weight, residual=residual, eps=self.eps)


class ExpertLayer(nn.Module):
    """One layer of one expert, without the attention that it shares."""

    def __init__(self, config: MoTConfig, expert: ExpertConfig) -> None:
        super().__init__()
        q_width = config.q_heads * config.head_dim
        kv_width = config.kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.input_norm = RMSNorm(expert.hidden, config.norm_eps)
        self.q_proj = nn.Linear(expert.hidden, q_width, bias=False)
        self.k_proj = nn.Linear(expert.hidden, kv_width, bias=False)
        self.v_proj = nn.Linear(expert.hidden, kv_width, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.o_proj = nn.Linear(q_width, expert.hidden, bias=False)
        self.post_norm = RMSNorm(expert.hidden, config.norm_eps)
        self.gate_proj = nn.Linear(expert.hidden, expert.mlp, bias=False)
        self.up_proj = nn.Linear(expert.hidden, expert.mlp, bias=False)
        self.down_proj = nn.Linear(expert.mlp, expert.hidden, bias=False)

    def qkv(self, h_EM: Tensor) -> list[Tensor]:
        """The projections of normed rows, before QK-norm: q ``[E, H·D]``, k and v ``[E, G·D]``."""
        return [self.q_proj(h_EM), self.k_proj(h_EM), self.v_proj(h_EM)]

    def kv(self, h_EM: Tensor) -> list[Tensor]:
        """The same where no query is asked for: as many of zeros as there are key-value heads."""
        k_EN = self.k_proj(h_EM)
        return [torch.zeros_like(k_EN), k_EN, self.v_proj(h_EM)]

    def mlp(self, h_EM: Tensor) -> Tensor:
        """SwiGLU of normed rows."""
        return self.down_proj(F.silu(self.gate_proj(h_EM)) * self.up_proj(h_EM))


class Expert(nn.Module):
    """A stack of layers and a final norm."""

    def __init__(self, config: MoTConfig, expert: ExpertConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ExpertLayer(config, expert) for _ in range(config.layers))
        self.norm = RMSNorm(expert.hidden, config.norm_eps)


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
        self.action = Expert(config, config.action)

    def forward(
        self,
        semantic_EM: Tensor,
        action_EM: Tensor,
        layout: Layout,
        prefix: Sequence[KeyValues] | None = None,
    ) -> tuple[Tensor, Tensor, tuple[KeyValues, ...]]:
        """One pass over all layers.

        Args:
            semantic_EM, action_EM: embedded tokens of each expert, in the order of its rows.
            layout: their joint order and what they see.
            prefix: keys and values per layer that ``layout.who`` continues.

        Returns:
            The final-normed rows of the semantic and of the action expert, and the keys and values
            that this pass made, per layer.
        """
        streams, made = self._run(semantic_EM, action_EM, layout, prefix)
        ends = {stream.expert: (stream.x_EM, stream.added_EM) for stream in streams}
        return (
            self.semantic.norm(*ends.get(self.semantic, (semantic_EM, None)))[0],
            self.action.norm(*ends.get(self.action, (action_EM, None)))[0],
            made,
        )

    def keys_values(
        self, semantic_EM: Tensor, action_EM: Tensor, layout: Layout
    ) -> tuple[KeyValues, ...]:
        """The keys and values that :meth:`forward` makes, and nothing that only its rows need."""
        return self._run(semantic_EM, action_EM, layout, None, keys_only=True)[1]

    def _run(
        self,
        semantic_EM: Tensor,
        action_EM: Tensor,
        layout: Layout,
        prefix: Sequence[KeyValues] | None,
        keys_only: bool = False,
    ) -> tuple[tuple["Stream", ...], tuple[KeyValues, ...]]:
        """All layers; with ``keys_only`` the last one stops at its keys and values."""
        config = self.config
        cos, sin = rotary(layout.positions, config.head_dim, config.rope_theta)
        streams = (
            Stream(self.semantic, layout.semantic_rows.int(), semantic_EM),
            Stream(self.action, layout.action_rows.int(), action_EM),
        )
        streams = tuple(stream for stream in streams if stream.x_EM.shape[0])
        # Joint row t is row order[t] of the experts' rows laid end to end.
        rows = [stream.rows for stream in streams]
        order = torch.cat(rows).argsort().int() if len(rows) > 1 else None
        again = self.recompute and torch.is_grad_enabled()
        made = []
        for i in range(config.layers):
            stop = keys_only and i == config.layers - 1
            cached = prefix[i] if prefix is not None else None
            given = (i, streams, cos, sin, layout.who, order, cached, stop)
            if again:
                # Nothing here is random, so there is no state of a generator to put back.
                found = checkpoint(
                    self._layer, *given, use_reentrant=False, preserve_rng_state=False
                )
                assert found is not None
                streams, own = found
            else:
                streams, own = self._layer(*given)
            made.append(own)
        return streams, tuple(made)

    def _layer(
        self,
        layer: int,
        streams: tuple["Stream", ...],
        cos: Tensor,
        sin: Tensor,
        who: KvEnd,
        order: Tensor | None,
        cached: KeyValues | None,
        stop: bool,
    ) -> tuple[tuple["Stream", ...], KeyValues]:
        """Streams after one layer, and its keys and values."""
        streams, q, k, v = self._attention_inputs(layer, streams, cos, sin, stop)
        if stop:
            return streams, KeyValues(k, v)
        before = (cached.k_TGD, cached.v_TGD) if cached is not None else (None, None)
        out_EHD, _ = shared_attention(q, k, v, who, *before, rows=order)
        outs = out_EHD.split([len(stream.x_EM) for stream in streams])
        streams = tuple(s.advance(layer, out) for s, out in zip(streams, outs, strict=True))
        return streams, KeyValues(k, v)

    def _attention_inputs(
        self,
        layer: int,
        streams: tuple["Stream", ...],
        cos: Tensor,
        sin: Tensor,
        keys_only: bool,
    ) -> tuple[tuple["Stream", ...], Tensor, Tensor, Tensor]:
        """Streams after their additions, q in the experts' order, k and v in joint order."""
        blocks = [stream.block(layer) for stream in streams]
        normed = [
            block.input_norm(stream.x_EM, stream.added_EM)
            for block, stream in zip(blocks, streams, strict=True)
        ]
        parts = [
            block.kv(h_EM) if keys_only else block.qkv(h_EM)
            for block, (h_EM, _) in zip(blocks, normed, strict=True)
        ]
        q_norms = [block.q_norm.weight for block in blocks]
        wide = torch.promote_types(parts[0][0].dtype, torch.float32)
        q, k, v = qkv_prep(
            [one for part in parts for one in part],
            [one.detach() for one in q_norms] if keys_only else q_norms,
            [block.k_norm.weight for block in blocks],
            cos.to(wide),
            sin.to(wide),
            [stream.rows for stream in streams],
            heads=self.config.kv_heads if keys_only else self.config.q_heads,
            groups=self.config.kv_heads,
            eps=self.config.norm_eps,
        )
        added = zip(streams, normed, strict=True)
        return tuple(replace(s, x_EM=x_EM, added_EM=None) for s, (_, x_EM) in added), q, k, v


@dataclass(frozen=True)
class Stream:
    """One expert's residual stream, in two parts until the next norm adds them.

    Attributes:
        rows: int32, the joint rows that the expert owns.
        x_EM: the stream before the last block.
        added_EM: what the last block adds, None for nothing.
    """

    expert: Expert
    rows: Tensor
    x_EM: Tensor
    added_EM: Tensor | None = None

    def block(self, layer: int) -> ExpertLayer:
        block = self.expert.layers[layer]
        assert isinstance(block, ExpertLayer)
        return block

    def advance(self, layer: int, attention_EHD: Tensor) -> "Stream":
        """The stream after the output projection and the MLP."""
        block = self.block(layer)
        h_EM, x_EM = block.post_norm(self.x_EM, block.o_proj(attention_EHD.flatten(1)))
        return replace(self, x_EM=x_EM, added_EM=block.mlp(h_EM))
