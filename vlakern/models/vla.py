"""The policy network: embed_prefix, embed_actions and velocity are the paper (arXiv 2602.09722).

Dimension letters: R action rows, H chunk, A action width, S state width, N prefixes, M model width.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlakern.errors import InputError
from vlakern.models.config import TimeConfig, VLAConfig
from vlakern.models.mot import KeyValues, MoT
from vlakern.models.sequence import Batch, action_layout, join
from vlakern.models.vision import VisionTower

__all__ = ["VLA", "Prefix", "time_embedding"]


@dataclass(frozen=True)
class Prefix:
    """Everything before the first action token, exact over all ODE steps.

    Attributes:
        layers: keys and values of every layer.
        cu_prefix: int64 ``[N + 1]``, rows of each document.
    """

    layers: tuple[KeyValues, ...]
    cu_prefix: Tensor


def time_embedding(tau: Tensor, width: int, config: TimeConfig) -> Tensor:
    """Sines then cosines of ``t · max_period^(-i / half)``: ``[...]`` to ``[..., width]`` fp32.

    The angles are fp64: at t near 1000 fp32 loses the digits that tell neighbouring times apart.
    """
    half = width // 2
    t = 1.0 - tau.double() if config.reverse else tau.double()
    # τ = 0.7 arrives as fp32, a hair below; 1e-4 of a bucket puts it back where it belongs.
    t = (t * config.buckets + 1e-4).floor() if config.buckets else t * config.scale
    exponent = torch.arange(half, dtype=torch.float64, device=tau.device) * (
        -math.log(config.max_period) / half
    )
    angle = t[..., None] * exponent.exp()
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


class ActionEncoder(nn.Module):
    """Noisy actions and flow time to tokens: W3 · silu(W2 · [W1 · x, embedding(τ)])."""

    def __init__(self, action_dim: int, width: int, time: TimeConfig) -> None:
        super().__init__()
        self.time = time
        self.width = width
        self.w1 = nn.Linear(action_dim, width)
        self.w2 = nn.Linear(2 * width, width)
        self.w3 = nn.Linear(width, width)

    def forward(self, x_RHA: Tensor, tau: Tensor) -> Tensor:
        """Tokens ``[R, H, M]``; τ is ``[R, H]``, or ``[R, 1]`` for all positions of a row."""
        h_RHM = self.w1(x_RHA)
        t_RHM = time_embedding(tau, self.width, self.time).to(h_RHM.dtype).expand_as(h_RHM)
        return self.w3(F.silu(self.w2(torch.cat([h_RHM, t_RHM], dim=-1))))


class VLA(nn.Module):
    """Vision tower, semantic expert, action expert and the flow-matching head."""

    def __init__(self, config: VLAConfig) -> None:
        super().__init__()
        self.config = config
        semantic, width = config.mot.semantic.hidden, config.mot.action.hidden
        self.vision = VisionTower(config.vision, semantic)
        # As nn.Embedding draws it, but for the meta device, see vision.py.
        drawn = torch.empty(config.vocab_size, semantic)
        drawn = drawn if drawn.is_meta else drawn.normal_()
        self.embed_tokens = nn.Embedding.from_pretrained(drawn, freeze=False)
        self.mot = MoT(config.mot)
        self.state_encoder = nn.Sequential(
            nn.Linear(config.state_dim, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.action_encoder = ActionEncoder(config.action_dim, width, config.time)
        self.action_decoder = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.action_dim)
        )

    def embed_prefix(self, batch: Batch, views: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Semantic rows ``[E, M]`` (text and image tokens) and action-expert rows (states).

        ``views`` are image tokens ``[V, K, M]`` that :attr:`vision` made before.
        """
        image = self.vision(batch.pixels_V3SS) if views is None else views
        text = self.embed_tokens(batch.tokens_L)
        semantic = torch.cat([text.to(image.dtype), image.flatten(0, 1)])
        return semantic.index_select(0, batch.semantic_order), self.state_encoder(batch.state_RS)

    def embed_actions(self, x_RHA: Tensor, tau: Tensor) -> Tensor:
        """Action tokens ``[R · H, M]``; τ is ``[R]``, ``[R, 1]`` or per position ``[R, H]``."""
        tau_by_position = tau if tau.ndim == 2 else tau[:, None]
        return self.action_encoder(x_RHA, tau_by_position).flatten(0, 1)

    def prefill(self, batch: Batch, views: Tensor | None = None) -> Prefix:
        """Runs everything that does not depend on the ODE variable, once."""
        semantic, state = self.embed_prefix(batch, views)
        layers = self.mot.keys_values(semantic, state, batch.layout)
        return Prefix(layers, batch.cu_prefix)

    def prefill_rows(self, batch: Batch, views: Tensor | None = None) -> tuple[Prefix, Tensor]:
        """:meth:`prefill`, and the final-normed rows of the semantic expert ``[E, M]``."""
        semantic, state = self.embed_prefix(batch, views)
        rows, _, layers = self.mot(semantic, state, batch.layout)
        return Prefix(layers, batch.cu_prefix), rows

    def velocity(
        self, prefix: Prefix, x_RHA: Tensor, tau: Tensor, prefix_index: Tensor | None = None
    ) -> Tensor:
        """dx/dτ ``[R, H, A]`` at ``x_τ`` and τ.

        Args:
            prefix: cached prefixes.
            x_RHA: the noisy chunks.
            tau: flow time ``[R]`` or per position ``[R, H]``; 0 is noise and 1 the action.
            prefix_index: int64 ``[R]``, the prefix of each row; one each, in order, by default.

        Raises:
            InputError: no ``prefix_index`` and not as many rows as prefixes.
        """
        rows, chunk = x_RHA.shape[:2]
        if prefix_index is None:
            if rows != len(prefix.cu_prefix) - 1:
                raise InputError(
                    f"{rows} rows for {len(prefix.cu_prefix) - 1} prefixes; say with prefix_index"
                    " which one each row continues"
                )
            prefix_index = torch.arange(rows, device=x_RHA.device)
        layout = action_layout(self.config, prefix.cu_prefix, prefix_index, chunk)
        tokens = self.embed_actions(x_RHA, tau)
        none = tokens.new_empty(0, self.config.mot.semantic.hidden)
        _, out, _ = self.mot(none, tokens, layout, prefix.layers)
        return self.action_decoder(out).unflatten(0, (rows, chunk))

    def velocity_uncached(self, batch: Batch, x_RHA: Tensor, tau: Tensor) -> Tensor:
        """The same velocity from one pass over whole documents, to test the cache against."""
        rows, chunk = x_RHA.shape[:2]
        index = torch.arange(rows, device=x_RHA.device)
        layout = join(batch.layout, action_layout(self.config, batch.cu_prefix, index, chunk))
        semantic, state = self.embed_prefix(batch)
        tokens = torch.cat([state, self.embed_actions(x_RHA, tau)])
        _, out, _ = self.mot(semantic, tokens, layout)
        return self.action_decoder(out[state.shape[0] :]).unflatten(0, (rows, chunk))
