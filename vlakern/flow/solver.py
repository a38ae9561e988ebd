"""Fixed-step solvers of dx/dτ = v(x, τ) from noise (τ = 0) to action (τ = 1).

Dimension letters: R rows, H chunk, A action width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlakern.errors import ConfigError, InputError
from vlakern.ops.ode_step import ode_step
from vlakern.ops.ode_step.reference import STAGES

__all__ = ["SOLVERS", "Frozen", "evaluation_times", "integrate"]

Velocity = Callable[[Tensor, Tensor], Tensor]

# Stages of ode_step: explicit Runge-Kutta methods of order 1, 2 and 2.
SOLVERS: dict[str, tuple[str, ...]] = {
    "euler": ("euler",),
    "midpoint": ("midpoint_half", "midpoint"),
    "heun": ("heun_predict", "heun"),
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


def evaluation_times(steps: int, solver: str) -> Tensor:
    """τ of every evaluation of the velocity, in order: ``[steps · stages]`` fp32."""
    dtau = torch.tensor(1.0 / steps)
    times = []
    for k in range(steps):
        tau = torch.tensor(k / steps)
        for stage in SOLVERS[solver]:
            times.append(tau)
            # The stage's own end is where the next one evaluates.
            tau = torch.tensor(k / steps) + STAGES[stage].c_tau * dtau
    return torch.stack(times)


def integrate(
    velocity: Velocity,
    noise_RHA: Tensor,
    *,
    steps: int,
    solver: Literal["euler", "midpoint", "heun"] = "euler",
    frozen: Frozen | None = None,
    slot_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Integrates ``steps`` equal steps; returns ``[R, H, A]`` in the noise's dtype.

    Args:
        velocity: v(x, τ) with x ``[R, H, A]`` and τ ``[R]``, or ``[R, H]`` with frozen positions.
        noise_RHA: x at τ = 0, fp32 (or fp64, which the reference backend takes).
        frozen: positions that keep their values and have τ = 1 throughout.
        slot_mask: uint8 ``[R, A]`` or ``[A]``; slots at 0 keep their noise.
        backend: of the update, the environment's choice by default.

    Raises:
        ConfigError: fewer than one step or an unknown solver.
        InputError: frozen actions of another shape, or lengths outside ``[0, H]``.
    """
    if steps < 1 or solver not in SOLVERS:
        raise ConfigError(
            f"steps = {steps} and solver = {solver!r}; expected at least one step and one of"
            f" {', '.join(SOLVERS)}"
        )
    x_RHA = noise_RHA
    is_frozen_RH = None
    if frozen is not None:
        is_frozen_RH = _frozen_positions(frozen, noise_RHA)
        x_RHA = torch.where(is_frozen_RH[..., None], frozen.action_RHA, x_RHA)
    dtau_R = x_RHA.new_full((len(x_RHA),), 1.0 / steps)
    for k in range(steps):
        # Set anew from k: summed steps of 1/10 would miss the bucket that 0.7 belongs to.
        tau = torch.full_like(dtau_R, k / steps)
        if is_frozen_RH is not None:
            tau = torch.where(is_frozen_RH, 1.0, tau[:, None])
        v0_RHA, stage_x, stage_tau = None, x_RHA, tau
        for stage in SOLVERS[solver]:
            v_RHA = velocity(stage_x, stage_tau)
            stage_x, stage_tau = ode_step(
                x_RHA,
                v_RHA,
                tau,
                dtau_R,
                stage=stage,
                v0=v0_RHA if stage == "heun" else None,
                frozen=frozen.action_RHA if frozen else None,
                frozen_len=frozen.length_R if frozen else None,
                slot_mask=slot_mask,
                backend=backend,
            )
            v0_RHA = v_RHA
        x_RHA = stage_x
    return x_RHA


def _frozen_positions(frozen: Frozen, noise_RHA: Tensor) -> Tensor:
    """bool ``[R, H]``."""
    action, length = frozen.action_RHA, frozen.length_R
    rows, chunk, _ = noise_RHA.shape
    if action.shape != noise_RHA.shape or length.shape != (rows,):
        raise InputError(
            f"frozen actions {list(action.shape)} with lengths {list(length.shape)} do not fit"
            f" chunks {list(noise_RHA.shape)}; expected {list(noise_RHA.shape)} and [{rows}]"
        )
    if bool(((length < 0) | (length > chunk)).any()):
        raise InputError(
            f"frozen lengths {length.tolist()} leave the chunk; expected 0 to {chunk} each"
        )
    return torch.arange(chunk, device=length.device) < length[:, None]
