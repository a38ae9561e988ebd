"""The definition of ``ode_step``: one stage of an ODE step along the flow path.

The path is x_τ = (1 - τ)·noise + τ·action, so dx/dτ = v and a stage of an explicit Runge-Kutta
step from τ is

    x_next = x + dτ·(c0·v0 + c1·v)        τ_next = τ + c_τ·dτ

with v0 = v(x, τ) and, per stage (Hairer, Nørsett and Wanner, Solving ODEs I, II.1):

    euler          x + dτ·v                       τ + dτ
    midpoint_half  x + dτ/2·v   (v at x)          τ + dτ/2
    midpoint       x + dτ·v     (v at the half)   τ + dτ
    heun_predict   x + dτ·v     (v at x)          τ + dτ
    heun           x + dτ·(v0 + v)/2  (v at the prediction)

A velocity may be led to decided actions Y before it moves x (real-time chunking, arXiv 2506.07339,
Eq. 2 to 4, with the identity as the Jacobian of the predicted chunk by x):

    v + min(β, (1 - τ) / (τ·r²))·W·(Y - (x + (1 - τ)·v))        r² = (1 - τ)² / (τ² + (1 - τ)²)

with x and τ where v was found, which in later stages is not where the step began.

Letters: B rows, H positions of the chunk, A slots.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "STAGES",
    "Led",
    "Stage",
    "compute_dtype",
    "frozen_positions",
    "guidance_curve",
    "led_velocity",
    "ode_step_gradients",
    "ode_step_reference",
]


class Stage(NamedTuple):
    """Coefficients of the first-stage velocity, of the velocity and of dτ in τ's step."""

    c0: float
    c1: float
    c_tau: float


STAGES = {
    "euler": Stage(0.0, 1.0, 1.0),
    "midpoint_half": Stage(0.0, 0.5, 0.5),
    "midpoint": Stage(0.0, 1.0, 1.0),
    "heun_predict": Stage(0.0, 1.0, 1.0),
    "heun": Stage(0.5, 0.5, 1.0),
}


class Led(NamedTuple):
    """What velocities are led to."""

    at: Tensor  # [B, H, A] x where v was found
    decided: Tensor  # [B, H, A] Y; where the weight is 0 it is not looked at
    weights: Tensor  # [B, H, A] W
    most: Tensor  # [B] β; a row at 0 is not led
    left: float  # 1 - τ, above 0


def guidance_curve(left: float) -> float:
    """(1 - τ) / (τ·r²) as one quotient, of 1 - τ; infinite at both ends of τ."""
    tau = 1.0 - left
    return (tau * tau + left * left) / (tau * left) if 0 < left < 1 else math.inf


def led_velocity(v: Tensor, led: Led) -> Tensor:
    """The corrected velocity ``[B, H, A]``."""
    scale = led.most.clamp(max=guidance_curve(led.left))[:, None, None] * led.weights
    error = led.decided - (led.at + led.left * v)
    return torch.where(scale > 0, v + scale * error, v)


def compute_dtype(x: Tensor) -> torch.dtype:
    """fp32, or fp64 for an fp64 state."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def frozen_positions(frozen_len: Tensor | None, rows: int, positions: int) -> Tensor | None:
    """Which positions are frozen, bool ``[B, H]``: the first ``frozen_len[b]`` of row b."""
    if frozen_len is None:
        return None
    leading = torch.arange(positions, device=frozen_len.device)  # [H]
    return (leading < frozen_len[:, None]).expand(rows, positions)


def ode_step_reference(
    x: Tensor,
    v: Tensor,
    tau: Tensor,
    dtau: Tensor,
    stage: str,
    v0: Tensor | None = None,
    frozen: Tensor | None = None,
    frozen_len: Tensor | None = None,
    slot_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns ``x_next [B, H, A]`` in x's dtype and ``tau_next`` of tau's shape."""
    c = STAGES[stage]
    dtype = compute_dtype(x)
    slope = c.c1 * v.to(dtype)
    if v0 is not None:
        slope = slope + c.c0 * v0.to(dtype)
    x_next = x.to(dtype) + dtau[:, None, None] * slope
    if slot_mask is not None:
        x_next = torch.where(slot_mask.bool()[..., None, :], x_next, x.to(dtype))
    x_next = x_next.to(x.dtype)
    tau_next = tau + c.c_tau * (dtau if tau.ndim == 1 else dtau[:, None])
    is_frozen = frozen_positions(frozen_len, x.shape[0], x.shape[1])
    if frozen is not None and is_frozen is not None:
        x_next = torch.where(is_frozen[:, :, None], frozen, x_next)
        if tau.ndim == 2:
            tau_next = torch.where(is_frozen, torch.ones_like(tau_next), tau_next)
    return x_next, tau_next


def ode_step_gradients(
    grad_x_next: Tensor,
    grad_tau_next: Tensor,
    v: Tensor,
    dtau: Tensor,
    stage: str,
    v0: Tensor | None,
    frozen_len: Tensor | None,
    slot_mask: Tensor | None,
) -> dict[str, Tensor]:
    """Gradients by argument name, in the compute dtype; the update is linear but for dτ·v.

    ∂x_next/∂x = 1 where not frozen, ∂/∂v = dτ·c1 and ∂/∂v0 = dτ·c0 where moved (neither frozen nor
    absent), ∂/∂frozen = 1 where frozen, ∂/∂dτ_b = Σ_moved (c0·v0 + c1·v).
    """
    c = STAGES[stage]
    dtype = compute_dtype(grad_x_next)
    g = grad_x_next.to(dtype)
    g_tau = grad_tau_next.to(dtype)
    rows, positions, _ = g.shape
    is_frozen = frozen_positions(frozen_len, rows, positions)
    free = g if is_frozen is None else g.masked_fill(is_frozen[:, :, None], 0)
    if is_frozen is not None and g_tau.ndim == 2:
        g_tau = g_tau.masked_fill(is_frozen, 0)
    moved = free
    if slot_mask is not None:
        moved = free.masked_fill(~slot_mask.bool()[..., None, :], 0)
    slope = c.c1 * v.to(dtype)
    if v0 is not None:
        slope = slope + c.c0 * v0.to(dtype)
    # Where nothing moves the velocity may be anything, also NaN, and must not reach the sum.
    along = torch.where(moved == 0, 0, moved * slope).sum((1, 2))  # [B]
    from_tau = c.c_tau * (g_tau if g_tau.ndim == 1 else g_tau.sum(1))
    step = dtau.to(dtype)[:, None, None]
    return {
        "x": free,
        "v": c.c1 * step * moved,
        "v0": c.c0 * step * moved,
        "tau": g_tau,
        "dtau": along + from_tau,
        "frozen": g - free,
    }
