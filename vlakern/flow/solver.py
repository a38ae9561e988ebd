"""Fixed-step solvers of dx/dτ = v(x, τ) from noise (τ = 0) to action (τ = 1).

Dimension letters: R rows, H chunk, A action width, T = 1 or H.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlakern.errors import ConfigError, InputError
from vlakern.ops.ode_step import ode_step

__all__ = ["SOLVERS", "Frozen", "Stage", "integrate"]

Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Stage:
    """One evaluation: x' = x + dτ · (c0 · v0 + c1 · v), τ' = τ + c_tau · dτ; x starts the step.

    v0 is the step's first velocity, v the latest one.
    """

    c0: float
    c1: float
    c_tau: float


# Explicit Runge-Kutta methods of order 1, 2 and 2.
SOLVERS: dict[str, tuple[Stage, ...]] = {
    "euler": (Stage(0.0, 1.0, 1.0),),
    "midpoint": (Stage(0.0, 0.5, 0.5), Stage(0.0, 1.0, 1.0)),
    "heun": (Stage(0.0, 1.0, 1.0), Stage(0.5, 0.5, 1.0)),
}


@dataclass(frozen=True)
class Frozen:
    """Leading positions whose actions are already decided (real-time chunking).

    Attributes:
        action_RHA: their values; rows of positions past the length are ignored.
        length_R: int32, how many leading positions of each row are frozen.
    """

    action_RHA: Tensor
    length_R: Tensor


def integrate(
    velocity: Velocity,
    noise_RHA: Tensor,
    *,
    steps: int,
    solver: Literal["euler", "midpoint", "heun"] = "euler",
    frozen: Frozen | None = None,
    slot_mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Integrates ``steps`` equal steps; returns ``[R, H, A]`` fp32.

    Args:
        velocity: v(x, τ) with x ``[R, H, A]`` and τ ``[R, T]``, T = H when positions are frozen.
        noise_RHA: x at τ = 0, fp32.
        frozen: positions that keep their values and have τ = 1 throughout.
        slot_mask: uint8 ``[R, A]`` or ``[A]``; slots at 0 keep their noise.
        backend: of the update, the environment's choice by default.

    Raises:
        ConfigError: fewer than one step or an unknown solver.
        InputError: frozen lengths outside ``[0, H]``.
    """
    if steps < 1 or solver not in SOLVERS:
        raise ConfigError(
            f"steps = {steps} and solver = {solver!r}; expected at least one step and one of"
            f" {', '.join(SOLVERS)}"
        )
    rows, chunk, slots = noise_RHA.shape
    x_RHA = noise_RHA
    is_frozen_RH = None
    mask_RA = None if slot_mask is None else slot_mask.expand(rows, slots)
    if frozen is not None:
        is_frozen_RH = _frozen_positions(frozen, chunk)
        x_RHA = torch.where(is_frozen_RH[..., None], frozen.action_RHA, x_RHA)
    dtau_R = torch.full((rows,), 1.0 / steps, device=x_RHA.device)
    for k in range(steps):
        # Set anew from k: summed steps of 1/10 would miss the bucket that 0.7 belongs to.
        tau_RT = torch.full((rows, 1), k / steps, device=x_RHA.device)
        if is_frozen_RH is not None:
            tau_RT = torch.where(is_frozen_RH, 1.0, tau_RT)
        v0_RHA, stage_x, stage_tau = None, x_RHA, tau_RT
        for stage in SOLVERS[solver]:
            v_RHA = velocity(stage_x, stage_tau)
            stage_x, stage_tau = ode_step(
                x_RHA,
                v_RHA,
                tau_RT,
                dtau_R,
                v0=v0_RHA if stage.c0 else None,
                frozen=frozen.action_RHA if frozen else None,
                frozen_len=frozen.length_R if frozen else None,
                slot_mask=mask_RA,
                c0=stage.c0,
                c1=stage.c1,
                c_tau=stage.c_tau,
                backend=backend,
            )
            v0_RHA = v_RHA if v0_RHA is None else v0_RHA
        x_RHA = stage_x
    return x_RHA


def _frozen_positions(frozen: Frozen, chunk: int) -> Tensor:
    """bool ``[R, H]``."""
    length = frozen.length_R
    if bool(((length < 0) | (length > chunk)).any()):
        raise InputError(
            f"frozen lengths {length.tolist()} leave the chunk; expected 0 to {chunk} each"
        )
    return torch.arange(chunk, device=length.device) < length[:, None]
