"""Solvers reach their order on a known equation; frozen positions and absent slots stay put."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from vlakern.errors import ConfigError, InputError
from vlakern.flow import SOLVERS, Frozen, integrate
from vlakern.testing import generator

Solver = Literal["euler", "midpoint", "heun"]
ORDERS: dict[Solver, int] = {"euler": 1, "midpoint": 2, "heun": 2}
EVERY = pytest.mark.parametrize("solver", ORDERS)
SHAPE = (3, 5, 4)


def noise(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(SHAPE, generator=generator("noise"), dtype=torch.float64).to(dtype) + 0.5


def per_position(tau: Tensor) -> Tensor:
    return (tau if tau.ndim == 2 else tau[:, None])[..., None]


def logistic(x: Tensor, tau: Tensor) -> Tensor:
    """dx/dτ = 2 τ x (3 - x): nonlinear and with τ of its own; :func:`solution` solves it."""
    return 2 * per_position(tau) * x * (3 - x)


def solution(x0: Tensor) -> Tensor:
    """x(1) = 3 / (1 + (3 / x0 - 1) · e^-3), because ∫ 2 τ dτ = 1."""
    return 3 / (1 + (3 / x0 - 1) * math.exp(-3))


def test_every_solver_has_an_order() -> None:
    """The table of this file and the package's agree."""
    assert set(ORDERS) == set(SOLVERS)


@EVERY
def test_error_falls_with_the_solvers_order(solver: Solver) -> None:
    """Slope of log error over log step, in fp64, within 0.1 of 1, 2 and 2."""
    x0 = noise(torch.float64)
    counts = np.array([16, 32, 64, 128, 256])
    errors = [
        float((integrate(logistic, x0, steps=n, solver=solver) - solution(x0)).abs().max())
        for n in counts.tolist()
    ]
    slope = np.polyfit(np.log(1 / counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(ORDERS[solver], abs=0.1)


@EVERY
def test_fp32_steps_equal_fp64_steps(solver: Solver) -> None:
    """The same scheme in both precisions, whichever backend serves fp32."""
    found = integrate(logistic, noise(), steps=10, solver=solver)
    exact = integrate(logistic, noise().double(), steps=10, solver=solver)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=10 * 3 * 2**-23)


@EVERY
def test_the_straight_path_is_exact_in_one_step(solver: Solver) -> None:
    """A velocity that is constant, action minus noise, leads to the action."""
    x0, action = noise(), noise().flip(0)
    found = integrate(lambda x, tau: action - x0, x0, steps=1, solver=solver)
    torch.testing.assert_close(found, action)


@EVERY
def test_times_of_evaluation_are_those_of_the_scheme(solver: Solver) -> None:
    """Steps begin at exactly k / steps in fp32; second stages at the half or at the end."""
    seen: list[float] = []

    def velocity(x: Tensor, tau: Tensor) -> Tensor:
        assert tau.shape == SHAPE[:1]
        seen.append(float(tau[0]))
        return torch.zeros_like(x)

    integrate(velocity, noise(), steps=10, solver=solver)
    starts = [float(np.float32(k / 10)) for k in range(10)]
    if solver == "euler":
        assert seen == starts
    else:
        assert seen[::2] == starts
        ahead = 0.05 if solver == "midpoint" else 0.1
        assert seen[1::2] == pytest.approx([k / 10 + ahead for k in range(10)], abs=1e-7)


def frozen() -> Frozen:
    return Frozen(torch.full(SHAPE, 7.0), torch.tensor([0, 2, 5], dtype=torch.int32))


@EVERY
def test_frozen_positions_never_move_and_are_at_time_one(solver: Solver) -> None:
    """In every evaluation they hold their value and τ = 1; the others their own state and time."""
    held = frozen()
    is_frozen = torch.arange(5) < held.length_R[:, None]
    free_times = []

    def velocity(x: Tensor, tau: Tensor) -> Tensor:
        assert tau.shape == SHAPE[:2]
        assert bool((x[is_frozen] == 7.0).all())
        assert bool((tau[is_frozen] == 1.0).all())
        assert len(tau[~is_frozen].unique()) == 1
        free_times.append(float(tau[~is_frozen][0]))
        return torch.full_like(x, 100.0)

    found = integrate(velocity, noise(), steps=4, solver=solver, frozen=held)
    assert bool((found[is_frozen] == 7.0).all())
    torch.testing.assert_close(found[~is_frozen], noise()[~is_frozen] + 100.0)
    assert max(free_times) <= 1.0
    assert free_times[0] == 0.0


@EVERY
def test_free_positions_do_not_feel_that_others_are_frozen(solver: Solver) -> None:
    """With a velocity that acts on each position alone, freezing changes nothing else."""
    held = frozen()
    is_frozen = torch.arange(5) < held.length_R[:, None]
    free = integrate(logistic, noise(), steps=4, solver=solver)
    found = integrate(logistic, noise(), steps=4, solver=solver, frozen=held)
    torch.testing.assert_close(found[~is_frozen], free[~is_frozen])


def test_values_beyond_the_frozen_length_are_ignored() -> None:
    """A previous chunk may hold anything there, also NaN."""
    held = frozen()
    held.action_RHA[0] = math.nan
    held.action_RHA[1, 2:] = math.nan
    found = integrate(logistic, noise(), steps=2, frozen=held)
    assert torch.equal(found, integrate(logistic, noise(), steps=2, frozen=frozen()))
    assert bool(found.isfinite().all())


@EVERY
@pytest.mark.parametrize("per_row", [False, True])
def test_absent_slots_keep_their_noise(solver: Solver, per_row: bool) -> None:
    """Slots at 0 in the mask hold their bits to the end; the others are integrated."""
    mask = torch.tensor([1, 0, 1, 0], dtype=torch.uint8)
    if per_row:
        mask = torch.stack([mask, 1 - mask, mask])
    absent = (mask == 0).expand(3, 4)[:, None].expand(SHAPE)
    found = integrate(logistic, noise(), steps=4, solver=solver, slot_mask=mask)
    assert torch.equal(found[absent], noise()[absent])
    full = integrate(logistic, noise(), steps=4, solver=solver)
    assert torch.equal(found[~absent], full[~absent])


def test_the_noise_is_not_changed() -> None:
    """The caller's tensor holds what it held."""
    x0 = noise()
    integrate(logistic, x0, steps=3, solver="heun", frozen=frozen())
    assert torch.equal(x0, noise())


@pytest.mark.parametrize("lengths", [[0, 2, 6], [-1, 2, 3]])
def test_a_frozen_length_outside_the_chunk_is_refused(lengths: list[int]) -> None:
    """One sentence with the lengths and the chunk."""
    held = Frozen(torch.zeros(SHAPE), torch.tensor(lengths, dtype=torch.int32))
    with pytest.raises(InputError, match="leave the chunk; expected 0 to 5"):
        integrate(logistic, noise(), steps=1, frozen=held)


def test_frozen_actions_of_another_shape_are_refused() -> None:
    """They would be broadcast over rows otherwise."""
    held = Frozen(torch.zeros(1, 5, 4), torch.tensor([1, 1, 1], dtype=torch.int32))
    with pytest.raises(InputError, match=r"frozen actions \[1, 5, 4\]"):
        integrate(logistic, noise(), steps=1, frozen=held)


@pytest.mark.parametrize(("steps", "solver"), [(0, "euler"), (-1, "heun"), (4, "rk4")])
def test_steps_and_solver_are_checked(steps: int, solver: Solver) -> None:
    """No step, or a solver that is not in the table."""
    with pytest.raises(ConfigError, match="at least one step and one of euler, midpoint, heun"):
        integrate(logistic, noise(), steps=steps, solver=solver)
