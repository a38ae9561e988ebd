"""One expert of a Mixture-of-Transformers: its norms, layers and stack, without attention.

Dimension letters: T joint rows, E rows of one expert, M model width, H query heads, G key-value
heads, D head dim, B runs of rows.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlakern.models.config import ExpertConfig, MoTConfig
from vlakern.ops.norm import norm

__all__ = ["AdaptiveNorm", "Expert", "ExpertLayer", "KeyValues", "RMSNorm"]


@dataclass(frozen=True)
class KeyValues:
    """Keys (normalised and rotated) and values of one layer: ``[T, G, D]`` each.

    Of a prefix's layer in which actions see it alone, they are the action expert's projections of
    the semantic expert's.
    """

    k_TGD: Tensor
    v_TGD: Tensor


class RMSNorm(nn.Module):
    """h = x + residual, and h / rms(h) * weight, the root mean square in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return norm(x, self.weight, residual=residual, eps=self.eps)


class AdaptiveNorm(nn.Module):
    """h = x + gate · residual, and h / rms(h) · (1 + scale) + shift.

    One Linear of the condition gives scale, shift and the gate of what the norm leads to
    (arXiv 2212.09748, Section 3.2).
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, 3 * width)
        self.eps = eps

    def forward(
        self, x: Tensor, residual: Tensor | None, gate: Tensor | None, condition_BM: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y, h and the next gate; ``gate`` is the last one's, of ``residual``."""
        scale, shift, following = (one.contiguous() for one in self.dense(condition_BM).chunk(3, 1))
        y, h = norm(x, scale=scale, shift=shift, residual=residual, gate=gate, eps=self.eps)
        return y, h, following


def _norm(config: MoTConfig, expert: ExpertConfig) -> nn.Module:
    kind = AdaptiveNorm if expert.adaptive else RMSNorm
    return kind(expert.hidden, config.norm_eps)


class ExpertLayer(nn.Module):
    """One layer of one expert, without the attention that it shares.

    ``crosses``: its keys and values are made of another expert's.
    """

    def __init__(self, config: MoTConfig, expert: ExpertConfig, crosses: bool = False) -> None:
        super().__init__()
        q_width = config.q_heads * config.head_dim
        kv_width = config.kv_heads * config.head_dim
        seen = kv_width if crosses else expert.hidden
        self.head_dim = config.head_dim
        self.input_norm = _norm(config, expert)
        self.q_proj = nn.Linear(expert.hidden, q_width, bias=False)
        self.k_proj = nn.Linear(seen, kv_width, bias=False)
        self.v_proj = nn.Linear(seen, kv_width, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.o_proj = nn.Linear(q_width, expert.hidden, bias=False)
        self.post_norm = _norm(config, expert)
        self.gate_proj = nn.Linear(expert.hidden, expert.mlp, bias=False)
        self.up_proj = nn.Linear(expert.hidden, expert.mlp, bias=False)
        self.down_proj = nn.Linear(expert.mlp, expert.hidden, bias=False)
        self.approximate = None if config.activation == "silu" else "tanh"

    def qkv(self, h_EM: Tensor) -> list[Tensor]:
        """The projections of normed rows, before QK-norm: q ``[E, H·D]``, k and v ``[E, G·D]``."""
        return [self.q_proj(h_EM), self.k_proj(h_EM), self.v_proj(h_EM)]

    def kv(self, h_EM: Tensor) -> list[Tensor]:
        """The same where no query is asked for: as many of zeros as there are key-value heads."""
        k_EN = self.k_proj(h_EM)
        return [torch.zeros_like(k_EN), k_EN, self.v_proj(h_EM)]

    def q(self, h_EM: Tensor) -> list[Tensor]:
        """The same where keys and values are another expert's: zeros in their place."""
        nothing = h_EM.new_zeros(len(h_EM), self.k_proj.out_features)
        return [self.q_proj(h_EM), nothing, nothing]

    def of(self, seen: KeyValues) -> KeyValues:
        """Keys and values made of another expert's; the keys stay as they were rotated."""
        heads = (-1, self.head_dim)
        k, v = self.k_proj(seen.k_TGD.flatten(1)), self.v_proj(seen.v_TGD.flatten(1))
        return KeyValues(k.unflatten(1, heads), v.unflatten(1, heads))

    def mlp(self, h_EM: Tensor) -> Tensor:
        """The gated MLP of normed rows."""
        gate = self.gate_proj(h_EM)
        gate = F.silu(gate) if self.approximate is None else F.gelu(gate, approximate="tanh")
        return self.down_proj(gate * self.up_proj(h_EM))


class Expert(nn.Module):
    """A stack of layers and a final norm."""

    def __init__(self, config: MoTConfig, expert: ExpertConfig, crosses: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ExpertLayer(config, expert, crosses and config.crosses(i)) for i in range(config.layers)
        )
        self.norm = _norm(config, expert)

    def layer(self, i: int) -> ExpertLayer:
        block = self.layers[i]
        assert isinstance(block, ExpertLayer)
        return block
