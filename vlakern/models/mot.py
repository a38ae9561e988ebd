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

from vlakern.models.config import ExpertConfig, MoTConfig
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


def _rotate(x_THD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (i, i + D/2) by their angle."""
    low, high = x_THD.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x_THD.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the root mean square in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight


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

    def qkv(self, x_EM: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[E, H, D]``, keys and values ``[E, G, D]``; QK-norm comes before RoPE."""
        h_EM = self.input_norm(x_EM)
        heads = (-1, self.head_dim)
        q_EHD = self.q_norm(self.q_proj(h_EM).unflatten(-1, heads))
        k_EGD = self.k_norm(self.k_proj(h_EM).unflatten(-1, heads))
        v_EGD = self.v_proj(h_EM).unflatten(-1, heads)
        return _rotate(q_EHD, cos, sin), _rotate(k_EGD, cos, sin), v_EGD

    def output(self, x_EM: Tensor, attention_EHD: Tensor) -> Tensor:
        """The residual stream after the output projection and the SwiGLU MLP."""
        x_EM = x_EM + self.o_proj(attention_EHD.flatten(1))
        h_EM = self.post_norm(x_EM)
        return x_EM + self.down_proj(F.silu(self.gate_proj(h_EM)) * self.up_proj(h_EM))


class Expert(nn.Module):
    """A stack of layers and a final norm."""

    def __init__(self, config: MoTConfig, expert: ExpertConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ExpertLayer(config, expert) for _ in range(config.layers))
        self.norm = RMSNorm(expert.hidden, config.norm_eps)


class MoT(nn.Module):
    """Runs both experts over packed documents; either may have no rows."""

    def __init__(self, config: MoTConfig) -> None:
        super().__init__()
        self.config = config
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
        config = self.config
        cos, sin = rotary(layout.positions, config.head_dim, config.rope_theta)
        streams = (
            Stream(self.semantic, layout.semantic_rows, semantic_EM),
            Stream(self.action, layout.action_rows, action_EM),
        )
        streams = tuple(stream for stream in streams if stream.x_EM.shape[0])
        # Joint row t is row order[t] of the experts' rows laid end to end; a lone expert owns all.
        order = rows = None
        if len(streams) > 1:
            order = torch.cat([layout.semantic_rows, layout.action_rows]).argsort()
            rows = order.int()
        else:
            streams = tuple(replace(stream, rows=None) for stream in streams)
        made = []
        for i in range(config.layers):
            parts = [stream.qkv(i, cos, sin) for stream in streams]
            q, k, v = (torch.cat(part) for part in zip(*parts, strict=True))
            k, v = _select(k, order), _select(v, order)
            made.append(KeyValues(k, v))
            cached = (prefix[i].k_TGD, prefix[i].v_TGD) if prefix is not None else (None, None)
            out_EHD, _ = shared_attention(q, k, v, layout.who, *cached, rows=rows)
            outs = out_EHD.split([len(stream.x_EM) for stream in streams])
            streams = tuple(s.advance(i, out) for s, out in zip(streams, outs, strict=True))
        by_expert = {stream.expert: stream.x_EM for stream in streams}
        return (
            self.semantic.norm(by_expert.get(self.semantic, semantic_EM)),
            self.action.norm(by_expert.get(self.action, action_EM)),
            tuple(made),
        )


@dataclass(frozen=True)
class Stream:
    """One expert's residual stream and the joint rows it owns, None for all of them."""

    expert: Expert
    rows: Tensor | None
    x_EM: Tensor

    def qkv(self, layer: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        block = self.expert.layers[layer]
        assert isinstance(block, ExpertLayer)
        return block.qkv(self.x_EM, _select(cos, self.rows), _select(sin, self.rows))

    def advance(self, layer: int, attention_EHD: Tensor) -> "Stream":
        block = self.expert.layers[layer]
        assert isinstance(block, ExpertLayer)
        return Stream(self.expert, self.rows, block.output(self.x_EM, attention_EHD))


def _select(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)
