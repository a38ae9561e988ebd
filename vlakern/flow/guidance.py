"""Guided prefixes of real-time chunking (arXiv 2506.07339): a chunk that goes on where one is.

A velocity is corrected so that the chunk it leads to agrees with actions that were decided before,
firmly where they will be executed meanwhile, less and less after that. In the cheap form the
correction is the masked error itself: the Jacobian of the predicted chunk by x is taken as the
identity, so that it costs no backward pass. It corrects any velocity that ``integrate`` takes.

Dimension letters: R rows, H chunk, A action width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlakern.errors import ConfigError, InputError
from vlakern.flow.solver import SOLVERS
from vlakern.ops.ode_step.reference import STAGES

__all__ = ["MOST_GUIDANCE", "Guidance", "guided", "overlap_mask", "soft_mask", "times_left"]

Velocity = Callable[[Tensor, Tensor], Tensor]
# β of the paper, the most that the correction is multiplied by.
MOST_GUIDANCE = 5.0
# 1 - τ below which τ is 1, but for the rounding of sums of steps.
DONE = 1e-6


@dataclass(frozen=True)
class Guidance:
    """What a chunk is led to while it is integrated; see :func:`guided`.

    Attributes:
        decided_RHA: Y in the model's numbers; where the weight is 0 it is not looked at.
        weights_RHA: W of each number.
        most: β.
        exact: whether the correction goes through the Jacobian of the predicted chunk.
    """

    decided_RHA: Tensor
    weights_RHA: Tensor
    most: float = MOST_GUIDANCE
    exact: bool = False


def soft_mask(chunk: int, delay: int, execute: int) -> Tensor:
    """W of Eq. 5, ``[H]`` fp32: how much each action holds to the one decided before.

    1 for the first ``delay``, which will have been executed; 0 for the last ``execute``, of which
    the former chunk says nothing; between them c·(e^c - 1) / (e - 1) with
    c = (H - s - i) / (H - s - d + 1).

    Raises:
        ConfigError: not d <= s <= H - d.
    """
    if not 0 <= delay <= execute <= chunk - delay:
        raise ConfigError(
            f"delay d = {delay}, execute s = {execute} and a chunk of H = {chunk} actions; expected"
            " d <= s <= H - d"
        )
    return overlap_mask(chunk, delay, chunk - execute)


def overlap_mask(chunk: int, delay: int, last: int) -> Tensor:
    """:func:`soft_mask` of the ``last`` actions of which the former chunk says something."""
    i = torch.arange(chunk, dtype=torch.float64)
    c = ((last - i) / (last - delay + 1)).clamp(0.0, 1.0)
    between = c * torch.expm1(c) / math.expm1(1.0)
    return torch.where(i < delay, 1.0, torch.where(i < last, between, 0.0)).float()


def times_left(steps: int, solver: str) -> list[float]:
    """1 - τ of every evaluation of the velocity, in order; 0 where there is nothing left."""
    shifts = [0.0, *(STAGES[stage].c_tau for stage in SOLVERS[solver])]
    return [1.0 - (k + shift) / steps for k in range(steps) for shift in shifts[:-1]]


def guided(
    velocity: Velocity,
    decided_RHA: Tensor,
    weights_H: Tensor,
    most_guidance: float = MOST_GUIDANCE,
    exact: bool = False,
) -> Velocity:
    """``velocity`` with the correction of Eq. 2 to 4, to be integrated in its place.

    v + min(β, (1 - τ) / (τ·r²)) · W · (Y - x̂), where x̂ = x + (1 - τ)·v is the chunk that v leads
    to and r² = (1 - τ)² / (τ² + (1 - τ)²).

    Args:
        velocity: v(x, τ) with x ``[R, H, A]`` and τ ``[R]`` or ``[R, H]``.
        decided_RHA: Y in the model's numbers; rows of weight 0 are not looked at.
        weights_H: W, ``[H]``, ``[R, H]`` or ``[R, H, A]``, of :func:`soft_mask`.
        most_guidance: β.
        exact: multiply the masked error by the Jacobian of x̂ by x, which takes a backward pass
            through the velocity; nothing may be in inference mode then.

    Raises:
        InputError: weights that do not fit, or decided actions that count and are not finite.
    """
    rows, chunk, _ = decided_RHA.shape
    shapes = ((chunk,), (rows, chunk), decided_RHA.shape)
    if weights_H.shape not in shapes or not most_guidance >= 0:
        raise InputError(
            f"weights are {list(weights_H.shape)} with guidance of at most {most_guidance},"
            f" expected [{chunk}] or [{rows}, {chunk}] or {list(decided_RHA.shape)} and 0 or more"
        )
    each = weights_H.ndim == 3
    weights_RHA = weights_H if each else weights_H.expand(rows, chunk)[..., None]
    decided = torch.where(weights_RHA > 0, decided_RHA, 0.0)
    if not bool(torch.isfinite(decided).all()):
        raise InputError("decided actions hold a value that is not finite")

    def corrected(x_RHA: Tensor, tau: Tensor) -> Tensor:
        t = (tau if tau.ndim == 2 else tau[:, None])[..., None]
        left = 1.0 - t
        # (1 - τ) / (τ·r²) as one quotient; it grows without end towards both ends of τ.
        scale = ((t * t + left * left) / (t * left)).clamp(max=most_guidance)
        # At τ = 1 there is nothing left to correct: a position that is frozen stays.
        scale = torch.where(left > DONE, scale, 0.0)
        with torch.set_grad_enabled(exact or torch.is_grad_enabled()):
            if exact:
                x_RHA = x_RHA.detach().requires_grad_()
            v_RHA = velocity(x_RHA, tau)
            ahead_RHA = x_RHA + left * v_RHA
        error = decided.to(x_RHA.dtype) - (ahead_RHA.detach() if exact else ahead_RHA)
        pull = weights_RHA.to(x_RHA.dtype) * error
        if exact:
            (pull,) = torch.autograd.grad(ahead_RHA, x_RHA, pull)
        return (v_RHA.detach() if exact else v_RHA) + scale * pull

    return corrected
