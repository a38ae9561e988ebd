"""The definition of ``flow_mix`` and ``flow_loss``, the two ends of a flow-matching training step.

The path is x_τ = (1 - τ)·z + τ·a with velocity a - z (arXiv 2602.09722, Eq. 2), where z is noise
(times its slot's weight) and a the action. With mask m and velocity v the loss of embodiment g is

    L_g = Σ m·(v - (a - z))² / (Σ m + 1e-8)     over the rows of g,

and the loss is Σ w_g·L_g / Σ w_g over the embodiments that occur. Elements with m = 0 do not count,
whatever their values. Flow time is drawn as

    uniform       τ = u
    beta          τ = (s - b) / s, b = u^(1/alpha), which is Beta(alpha, 1)
    logit_normal  τ = 1 / (1 + e^-z)

from the words of block 0 of a row's stream 1: u = (w0 >> 8) / 2^24, z the first normal.

Letters: R rows, B samples of R / B rows each, H positions, A slots, G embodiments.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vlakern.ops.flow_loss.philox import TAU, box_muller, noise_reference, row_words

__all__ = [
    "LAWS",
    "Law",
    "compute_dtype",
    "flow_loss_gradient",
    "flow_loss_reference",
    "flow_mix_reference",
    "noise_of",
    "tau_reference",
]

LAWS = ("uniform", "beta", "logit_normal")


class Law(NamedTuple):
    """How flow time is drawn; alpha and s are of the beta law."""

    kind: str = "beta"
    alpha: float = 1.5
    s: float = 0.999


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """fp32, or fp64 for fp64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def addresses(rows: Tensor | None, count: int, device: torch.device) -> Tensor:
    """The rows' addresses, their indices by default; int64 ``[R]``."""
    return torch.arange(count, device=device) if rows is None else rows


def noise_of(
    action: Tensor,
    count: int,
    seed: int,
    rows: Tensor | None,
    noise: Tensor | None,
    slots: Tensor | None,
) -> Tensor:
    """Noise ``[R, H, A]``: given, or drawn for ``count`` rows; weighted by the slots."""
    if noise is None:
        shape = (count, *action.shape[1:])
        at = addresses(rows, count, action.device)
        elements = action.shape[1] * action.shape[2]
        noise = noise_reference(seed, at, elements, compute_dtype(action)).reshape(shape)
    if slots is None:
        return noise
    return noise * _repeat(slots, count).to(noise.dtype)[:, None]


def _repeat(per_sample: Tensor, count: int) -> Tensor:
    """``[B, ...]`` to ``[R, ...]``: each sample's rows follow each other."""
    return per_sample.repeat_interleave(count // max(1, len(per_sample)), 0)


def tau_reference(seed: int, rows_R: Tensor, law: Law, dtype: torch.dtype) -> Tensor:
    """Flow times ``[R]``, computed in fp64 and rounded once."""
    words = [word[:, 0] for word in row_words(seed, rows_R, TAU, 1)]
    if law.kind == "logit_normal":
        return box_muller(words[0], words[1])[0].sigmoid().to(dtype)
    u = (words[0] >> 8).double() * 2.0**-24
    if law.kind == "beta":
        u = (law.s - u ** (1.0 / law.alpha)) / law.s
    return u.to(dtype)


def flow_mix_reference(
    action: Tensor,
    count: int,
    seed: int,
    rows: Tensor | None,
    noise: Tensor | None,
    slots: Tensor | None,
    tau: Tensor | None,
    law: Law,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """``x_τ [R, H, A]`` in ``dtype`` and τ ``[R]`` or ``[R, H]``."""
    z = noise_of(action, count, seed, rows, noise, slots)
    if tau is None:
        at = addresses(rows, count, action.device)
        tau = tau_reference(seed, at, law, compute_dtype(action))
    share = tau.reshape(*tau.shape, *(1,) * (3 - tau.ndim))
    x = (1.0 - share) * z + share * _repeat(action, count)
    return x.to(dtype), tau


def flow_loss_reference(
    velocity: Tensor,
    action: Tensor,
    seed: int,
    rows: Tensor | None,
    noise: Tensor | None,
    slots: Tensor | None,
    mask: Tensor | None,
    group: Tensor | None,
    weights: Tensor | None,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """The loss ``[1]`` and the coefficients ``[G]`` of :func:`flow_loss_gradient`."""
    m, error = _errors(velocity, action, seed, rows, noise, slots, mask)
    at = _groups(group, action.device, len(velocity), len(action))
    zeros = error.new_zeros(groups)
    squares = zeros.index_add(0, at, (m * error.square()).sum((1, 2)))  # [G]
    masks = zeros.index_add(0, at, m.sum((1, 2)))  # [G]
    occurs = zeros.index_fill(0, at, 1.0)
    w = occurs if weights is None else occurs * weights.to(zeros.dtype)
    share = torch.where(w == 0, 0.0, w / w.sum()) / (masks + 1e-8)
    return (share * squares).sum()[None], 2.0 * share.detach()


def flow_loss_gradient(
    velocity: Tensor,
    action: Tensor,
    seed: int,
    rows: Tensor | None,
    noise: Tensor | None,
    slots: Tensor | None,
    mask: Tensor | None,
    group: Tensor | None,
    coefficients: Tensor,
) -> Tensor:
    """∂loss/∂v = 2·w_g / Σw / (Σ m + 1e-8) · m·(v - target), ``[R, H, A]`` in v's dtype."""
    m, error = _errors(velocity, action, seed, rows, noise, slots, mask)
    at = _groups(group, action.device, len(velocity), len(action))
    return (coefficients[at][:, None, None] * m * error).to(velocity.dtype)


def _errors(
    velocity: Tensor,
    action: Tensor,
    seed: int,
    rows: Tensor | None,
    noise: Tensor | None,
    slots: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Mask and v - target, each ``[R, H, A]``, in the compute dtype; 0 where it does not count."""
    count = len(velocity)
    z = noise_of(action, count, seed, rows, noise, slots)
    error = velocity.to(z.dtype) - (_repeat(action, count) - z)
    m = torch.ones_like(error) if mask is None else _repeat(mask, count).to(z.dtype)
    return m, torch.where(m == 0, 0.0, error)


def _groups(group: Tensor | None, device: torch.device, count: int, samples: int) -> Tensor:
    if group is None:
        return torch.zeros(count, dtype=torch.int64, device=device)
    return group.long().repeat_interleave(count // max(1, samples))
