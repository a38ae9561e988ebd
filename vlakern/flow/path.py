"""The straight path from noise to action and the sampling of flow time (arXiv 2602.09722, Eq. 2).

Dimension letters: R rows, H chunk, A action width.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vlakern.errors import ConfigError

__all__ = ["TauConfig", "interpolate", "masked_loss", "sample_tau", "target"]

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
