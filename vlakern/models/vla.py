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
from vlakern.models.expert import KeyValues
from vlakern.models.mot import MoT
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
    """Sines then cosines of flow time's angles, see ``TimeConfig``: ``[...]`` to ``[..., width]``
    fp32.

    The angles are fp64: at t near 1000 fp32 loses the digits that tell neighbouring times apart.
    """
    half = width // 2
    t = 1.0 - tau.double() if config.reverse else tau.double()
    # τ = 0.7 arrives as fp32, a hair below; 1e-4 of a bucket puts it back where it belongs.
    t = (t * config.buckets + 1e-4).floor() if config.buckets else t * config.scale
    place = torch.arange(half, dtype=torch.float64, device=tau.device)
    if config.min_period is None:
        frequency = (place * (-math.log(config.max_period) / half)).exp()
    else:
        ratio = math.log(config.max_period / config.min_period)
        period = config.min_period * (place * (ratio / max(half - 1, 1))).exp()
        frequency = 2 * math.pi / period
    angle = t[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


class ActionEncoder(nn.Module):
    """Noisy actions and flow time to tokens: W3 · silu(W2 · [W1 · x, embedding(τ)]); or W1 · x."""

    def __init__(self, config: VLAConfig) -> None:
        super().__init__()
        self.time = config.time
        self.width = width = config.mot.action.hidden
        self.mixes = config.action_encoder == "mixed"
        self.w1 = nn.Linear(config.action_dim, width)
        if self.mixes:
            self.w2 = nn.Linear(2 * width, width)
            self.w3 = nn.Linear(width, width)

    def forward(self, x_RHA: Tensor, tau: Tensor) -> Tensor:
        """Tokens ``[R, H, M]``; τ is ``[R, H]``, or ``[R, 1]`` for all positions of a row."""
        h_RHM = self.w1(x_RHA)
        if not self.mixes:
            return h_RHM
        t_RHM = time_embedding(tau, self.width, self.time).to(h_RHM.dtype).expand_as(h_RHM)
        return self.w3(F.silu(self.w2(torch.cat([h_RHM, t_RHM], dim=-1))))


def _edge(kind: str, given: int, width: int, wanted: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(given, wanted)
    return nn.Sequential(nn.Linear(given, width), nn.ReLU(), nn.Linear(width, wanted))


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
        if config.state != "words":
            owner = semantic if config.state == "semantic" else width
            self.state_encoder = _edge(config.state_encoder, config.state_dim, owner, owner)
        self.action_encoder = ActionEncoder(config)
        self.action_decoder = _edge(config.action_decoder, width, width, config.action_dim)
        if config.mot.action.adaptive:
            self.time_mlp = nn.Sequential(
                nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
            )

    def embed_prefix(self, batch: Batch, views: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Semantic rows ``[E, M]`` (text and image tokens) and action-expert rows; states among
        those of their owner.

        ``views`` are image tokens ``[V, K, M]`` that :attr:`vision` made before.
        """
        image = self.vision(batch.pixels_V3SS) if views is None else views
        text = self.embed_tokens(batch.tokens_L)
        semantic = [text.to(image.dtype), image.flatten(0, 1)]
        action = image.new_empty(0, self.config.mot.action.hidden)
        if self.config.state == "semantic":
            semantic.append(self.state_encoder(batch.state_RS).to(image.dtype))
        elif self.config.state == "action":
            action = self.state_encoder(batch.state_RS)
        return torch.cat(semantic).index_select(0, batch.semantic_order), action

    def embed_actions(self, x_RHA: Tensor, tau: Tensor) -> Tensor:
        """Action tokens ``[R · H, M]``; τ is ``[R]``, ``[R, 1]`` or per position ``[R, H]``."""
        return self.action_encoder(x_RHA, _by_position(tau)).flatten(0, 1)

    def condition(self, tau: Tensor) -> Tensor | None:
        """What flow time gives to adaptive norms, for equal runs of the action tokens: ``[B, M]``.

        B is R, or R · H for τ per position; None without adaptive norms.
        """
        if not self.config.mot.action.adaptive:
            return None
        width = self.config.mot.action.hidden
        embedded = time_embedding(_by_position(tau).flatten(), width, self.config.time)
        return self.time_mlp(embedded.to(self.embed_tokens.weight.dtype))

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
        _, out, _ = self.mot(none, tokens, layout, prefix.layers, self.condition(tau))
        return self.action_decoder(out).unflatten(0, (rows, chunk))

    def velocity_uncached(self, batch: Batch, x_RHA: Tensor, tau: Tensor) -> Tensor:
        """The same velocity from one pass over whole documents, to test the cache against."""
        rows, chunk = x_RHA.shape[:2]
        index = torch.arange(rows, device=x_RHA.device)
        layout = join(batch.layout, action_layout(self.config, batch.cu_prefix, index, chunk))
        semantic, state = self.embed_prefix(batch)
        tokens = torch.cat([state, self.embed_actions(x_RHA, tau)])
        _, out, _ = self.mot(semantic, tokens, layout, condition_BM=self.condition(tau))
        return self.action_decoder(out[state.shape[0] :]).unflatten(0, (rows, chunk))


def _by_position(tau: Tensor) -> Tensor:
    return tau if tau.ndim == 2 else tau[:, None]
