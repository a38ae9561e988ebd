"""The straight path from noise to action and the sampling of flow time (arXiv 2602.09722, Eq. 2).

What a training step draws has addresses: it depends on a seed and on the number of its row alone,
never on what else is in a batch, see :mod:`vlakern.ops.flow_loss.philox`.

Dimension letters: R rows, H chunk, A action width.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vlakern.errors import ConfigError
from vlakern.ops.flow_loss.philox import row_words
from vlakern.ops.flow_loss.reference import Law, tau_reference

__all__ = [
    "TauConfig",
    "delay_shares",
    "delays_at",
    "interpolate",
    "masked_loss",
    "sample_tau",
    "target",
    "taus_at",
]

# The stream of Philox counters after those of noise and flow time.
DELAY = 2
Kind = Literal["uniform", "beta", "logit_normal"]


@dataclass(frozen=True)
class TauConfig:
    """How flow time is drawn in training.

    Attributes:
        kind: ``uniform`` on [0, 1); ``beta``: τ = (s - b) / s with b ~ Beta(alpha, 1), which puts
            mass towards noise and may be slightly negative; ``logit_normal``: sigmoid of N(0, 1).
        alpha, s: of the beta kind.
    """

    kind: Kind = "beta"
    alpha: float = 1.5
    s: float = 0.999

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"tau: kind {self.kind!r} is not one of {', '.join(get_args(Kind))}")
        if not self.alpha > 0 or not 0 < self.s <= 1:
            raise ConfigError(f"tau: alpha > 0 and 0 < s <= 1 expected, found {self}")


def sample_tau(rows: int, config: TauConfig, generator: torch.Generator) -> Tensor:
    """Flow times ``[R]`` fp32."""
    if config.kind == "logit_normal":
        return torch.randn(rows, generator=generator).sigmoid()
    u = torch.rand(rows, generator=generator)
    if config.kind == "uniform":
        return u
    # Beta(alpha, 1) has the distribution function b^alpha, so its inverse is u^(1 / alpha).
    return (config.s - u ** (1.0 / config.alpha)) / config.s


def taus_at(rows_R: Tensor, config: TauConfig, seed: int) -> Tensor:
    """Flow times ``[R]`` fp32 of the rows with these addresses: those that ``flow_mix`` draws."""
    law = Law(config.kind, config.alpha, config.s)
    return tau_reference(seed, rows_R, law, torch.float32)


def delay_shares(limit: int) -> list[float]:
    """P(d) ∝ exp(limit - 1 - d) of the delays 0 to ``limit`` - 1."""
    weights = [math.exp(-d) for d in range(limit)]
    return [weight / sum(weights) for weight in weights]


def delays_at(rows_R: Tensor, limit: int, seed: int) -> Tensor:
    """How many leading actions are given in the rows with these addresses: int64 ``[R]``."""
    word_R = row_words(seed, rows_R, DELAY, 1)[0][:, 0]
    u_R = (word_R >> 8).double() * 2.0**-24
    ends = torch.tensor(delay_shares(limit), dtype=torch.float64, device=rows_R.device).cumsum(0)
    return torch.searchsorted(ends, u_R, right=True).clamp(max=limit - 1)


def interpolate(noise_RHA: Tensor, action_RHA: Tensor, tau_R: Tensor) -> Tensor:
    """x_τ = (1 - τ) · noise + τ · action; ``tau_R`` is ``[R]`` or per position ``[R, H]``."""
    tau = tau_R.reshape(*tau_R.shape, *(1,) * (noise_RHA.ndim - tau_R.ndim))
    return (1.0 - tau) * noise_RHA + tau * action_RHA


def target(noise_RHA: Tensor, action_RHA: Tensor) -> Tensor:
    """The velocity of the path, dx_τ/dτ = action - noise."""
    return action_RHA - noise_RHA


def masked_loss(velocity_RHA: Tensor, target_RHA: Tensor, mask_RHA: Tensor) -> Tensor:
    """Σ mask · (v - target)² / (Σ mask + 1e-8), in fp32."""
    error = (velocity_RHA.float() - target_RHA.float()).square()
    mask = mask_RHA.float()
    return (error * mask).sum() / (mask.sum() + 1e-8)
