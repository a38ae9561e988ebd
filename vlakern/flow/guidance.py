"""Guided prefixes of real-time chunking (arXiv 2506.07339): a chunk that goes on where one is.

A velocity is corrected so that the chunk it leads to agrees with actions that were decided before,
firmly where they will be executed meanwhile, less and less after that. This is the form whose
correction is the masked error itself: the Jacobian of the predicted chunk by x is taken as the
identity, so that it costs no backward pass. It corrects any velocity that ``integrate`` takes.

Dimension letters: R rows, H chunk, A action width.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vlakern.errors import ConfigError, InputError

__all__ = ["guided", "soft_mask"]

Velocity = Callable[[Tensor, Tensor], Tensor]
# β of the paper, the most that the correction is multiplied by.
MOST_GUIDANCE = 5.0


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
    i = torch.arange(chunk, dtype=torch.float64)
    last = chunk - execute
    c = ((last - i) / (last - delay + 1)).clamp(0.0, 1.0)
    between = c * torch.expm1(c) / math.expm1(1.0)
    return torch.where(i < delay, 1.0, torch.where(i < last, between, 0.0)).float()


def guided(
    velocity: Velocity,
    decided_RHA: Tensor,
    weights_H: Tensor,
    most_guidance: float = MOST_GUIDANCE,
) -> Velocity:
    """``velocity`` with the correction of Eq. 2 to 4, to be integrated in its place.

    v + min(β, (1 - τ) / (τ·r²)) · W · (Y - x̂), where x̂ = x + (1 - τ)·v is the chunk that v leads
    to and r² = (1 - τ)² / (τ² + (1 - τ)²).

    Args:
        velocity: v(x, τ) with x ``[R, H, A]`` and τ ``[R]`` or ``[R, H]``.
        decided_RHA: Y in the model's numbers; rows of weight 0 are not looked at.
        weights_H: W, ``[H]`` or ``[R, H]``, of :func:`soft_mask`.
        most_guidance: β.

    Raises:
        InputError: weights that do not fit, or decided actions that count and are not finite.
    """
    rows, chunk, _ = decided_RHA.shape
    if weights_H.shape not in ((chunk,), (rows, chunk)) or not most_guidance >= 0:
        raise InputError(
            f"weights are {list(weights_H.shape)} with guidance of at most {most_guidance},"
            f" expected [{chunk}] or [{rows}, {chunk}] and 0 or more"
        )
    weights_RH1 = weights_H.expand(rows, chunk)[..., None]
    decided = torch.where(weights_RH1 > 0, decided_RHA, 0.0)
    if not bool(torch.isfinite(decided).all()):
        raise InputError("decided actions hold a value that is not finite")

    def corrected(x_RHA: Tensor, tau: Tensor) -> Tensor:
        v_RHA = velocity(x_RHA, tau)
        t = (tau if tau.ndim == 2 else tau[:, None])[..., None]
        left = 1.0 - t
        # (1 - τ) / (τ·r²) as one quotient; it grows without end towards both ends of τ.
        scale = ((t * t + left * left) / (t * left)).clamp(max=most_guidance)
        # At τ = 1 there is nothing left to correct: a position that is frozen stays.
        scale = torch.where(left > 0, scale, 0.0)
        error = decided.to(x_RHA.dtype) - (x_RHA + left * v_RHA)
        return v_RHA + scale * weights_RH1.to(x_RHA.dtype) * error

    return corrected
