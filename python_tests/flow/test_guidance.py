"""Guidance leads a chunk to what was decided, as firmly as the weights and beta say."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vlakern.errors import ConfigError, InputError
from vlakern.flow import guided, integrate, soft_mask
from vlakern.testing import generator

SHAPE = (2, 8, 3)


def drawn(name: str) -> Tensor:
    return torch.randn(SHAPE, generator=generator(name), dtype=torch.float64)


def straight(goal: Tensor):
    """Leads to ``goal`` from anywhere: v = (goal - x) / (1 - τ)."""

    def velocity(x: Tensor, tau: Tensor) -> Tensor:
        t = (tau if tau.ndim == 2 else tau[:, None])[..., None]
        return (goal - x) / (1 - t)

    return velocity


def test_weights_are_those_of_the_paper() -> None:
    """1, then the soft fall of Eq. 5, then 0."""
    found = soft_mask(10, delay=2, execute=4)
    wanted = [1.0, 1.0]
    for i in range(2, 6):
        c = (10 - 4 - i) / (10 - 4 - 2 + 1)
        wanted.append(c * (math.e**c - 1) / (math.e - 1))
    np.testing.assert_allclose(found, [*wanted, 0, 0, 0, 0], rtol=1e-6)
    for delay, execute in ((3, 2), (4, 7), (-1, 3)):
        with pytest.raises(ConfigError, match=r"d <= s <= H - d"):
            soft_mask(10, delay, execute)


def test_without_weight_nothing_changes() -> None:
    """Rows of weight 0 may even hold NaN: nobody looks at them."""
    noise, velocity = drawn("noise"), straight(drawn("goal"))
    decided = torch.full(SHAPE, torch.nan, dtype=torch.float64)
    free = integrate(guided(velocity, decided, torch.zeros(8)), noise, steps=6)
    torch.testing.assert_close(free, integrate(velocity, noise, steps=6), rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("beta", [0.5, 5.0])
def test_the_toy_flow_ends_where_its_recursion_says(steps: int, beta: float) -> None:
    """With v = (g - x) / (1 - τ) each Euler step moves x̂ to g, so the chunk can be said by hand.

    x' = x + dτ·((g - x) / (1 - τ) + c·w·(y - g)): the error e = x - g obeys
    e' = e·(1 - dτ / (1 - τ)) + dτ·c·w·(y - g), a number per weight and step.
    """
    noise, goal, decided = drawn("noise"), drawn("goal"), drawn("decided")
    weights = soft_mask(8, 2, 3)
    found = integrate(guided(straight(goal), decided, weights, beta), noise, steps=steps)
    e, dtau = (noise - goal).numpy(), 1 / steps
    pull = weights.double()[None, :, None].numpy() * (decided - goal).numpy()
    for k in range(steps):
        tau = k / steps
        r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
        c = beta if tau == 0 else min(beta, (1 - tau) / (tau * r2))
        e = e * (1 - dtau / (1 - tau)) + dtau * c * pull
    np.testing.assert_allclose(found, goal.numpy() + e, rtol=1e-5, atol=1e-6)


def test_decided_actions_are_kept_better_than_without() -> None:
    """Where a flow contracts less than fully, the first actions come near the decided ones."""
    noise, goal, decided = drawn("noise"), drawn("goal"), drawn("decided")

    def velocity(x: Tensor, tau: Tensor) -> Tensor:
        return goal - noise + 0.0 * x

    free = integrate(velocity, noise, steps=10)
    held = integrate(guided(velocity, decided, soft_mask(8, 3, 3)), noise, steps=10)
    before, after = ((one - decided)[:, :3].abs().mean() for one in (free, held))
    assert after < 0.05 * before
    torch.testing.assert_close(held[:, 5:], free[:, 5:])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="weights are"):
        guided(straight(drawn("goal")), drawn("decided"), torch.ones(7))
    bad = drawn("decided")
    bad[0, 0, 0] = torch.inf
    with pytest.raises(InputError, match="not finite"):
        guided(straight(drawn("goal")), bad, torch.ones(8))
