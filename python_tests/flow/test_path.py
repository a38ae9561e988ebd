"""The path from noise to action, its velocity, the loss and the laws of sampled flow time."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from vlakern.errors import ConfigError
from vlakern.flow import TauConfig, interpolate, masked_loss, sample_tau, target
from vlakern.flow.path import delay_shares, delays_at, taus_at
from vlakern.testing import generator

COUNT = 20_000
# Distribution functions of τ; for the beta kind τ = (s - b) / s, so F(τ) = 1 - F_b(s (1 - τ)).
LAWS = {
    TauConfig("uniform"): stats.uniform().cdf,
    TauConfig("logit_normal"): lambda t: stats.norm().cdf(np.log(t / (1 - t))),
    TauConfig("beta"): lambda t: stats.beta(1.5, 1.0).sf(0.999 * (1 - t)),
    TauConfig("beta", alpha=2.5, s=0.9): lambda t: stats.beta(2.5, 1.0).sf(0.9 * (1 - t)),
}


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    noise, action = torch.randn(2, 3, 4, 5, generator=generator("pair"), dtype=torch.float64)
    return noise, action


def test_path_starts_at_noise_and_ends_at_the_action() -> None:
    """τ = 0 is the noise and τ = 1 the action, to the last bit."""
    noise, action = pair()
    assert torch.equal(interpolate(noise, action, torch.zeros(3)), noise)
    assert torch.equal(interpolate(noise, action, torch.ones(3)), action)


def test_target_is_the_derivative_of_the_path() -> None:
    """A central difference in τ of x_τ, at several τ, per row and per position."""
    noise, action = pair()
    h = 1e-3
    for tau in (torch.tensor([0.1, 0.5, 0.9]).double(), torch.rand(3, 4, dtype=torch.float64)):
        slope = interpolate(noise, action, tau + h) - interpolate(noise, action, tau - h)
        torch.testing.assert_close(slope / (2 * h), target(noise, action), rtol=0, atol=1e-10)


def test_tau_may_differ_by_position() -> None:
    """[R, H] flow times move each position by its own share, [R] all positions of a row."""
    noise, action = pair()
    tau = torch.rand(3, 4, generator=generator("tau"), dtype=torch.float64)
    found = interpolate(noise, action, tau)
    for row in range(3):
        for position in range(4):
            share = tau[row, position]
            expected = (1 - share) * noise[row, position] + share * action[row, position]
            torch.testing.assert_close(found[row, position], expected)
    same = tau[:, :1].expand(-1, 4)
    assert torch.equal(interpolate(noise, action, tau[:, 0]), interpolate(noise, action, same))


@pytest.mark.parametrize("config", LAWS, ids=lambda c: f"{c.kind} {c.alpha}")
def test_flow_times_follow_their_law(config: TauConfig) -> None:
    """Kolmogorov-Smirnov against scipy; 20,000 draws would show a deviation of 1.5 %."""
    tau = sample_tau(COUNT, config, generator(str(config))).double().numpy()
    assert tau.shape == (COUNT,)
    assert stats.kstest(tau, LAWS[config]).pvalue > 0.01


@pytest.mark.parametrize("config", LAWS, ids=lambda c: f"{c.kind} {c.alpha}")
def test_each_law_is_told_from_the_others(config: TauConfig) -> None:
    """The test above can fail: every other law is rejected on the same draws."""
    tau = sample_tau(COUNT, config, generator(str(config))).double().numpy().clip(1e-6, 1 - 1e-6)
    for other, law in LAWS.items():
        if other != config:
            assert stats.kstest(tau, law).pvalue < 1e-6


def test_beta_times_lean_to_noise_and_may_be_slightly_negative() -> None:
    """Mean 1 - E[b] / s with E[b] = alpha / (alpha + 1); never below 1 - 1 / s."""
    config = TauConfig("beta")
    tau = sample_tau(200_000, config, generator("beta")).double()
    assert float(tau.mean()) == pytest.approx(1 - 0.6 / 0.999, abs=0.002)
    assert 1 - 1 / 0.999 - 1e-6 <= float(tau.min()) < 0
    assert float(tau.max()) <= 1


def test_flow_times_come_from_the_generator_alone() -> None:
    """The same seed draws the same times, whatever torch's global generator does."""
    torch.manual_seed(1)
    one = sample_tau(8, TauConfig(), torch.Generator().manual_seed(5))
    torch.manual_seed(2)
    assert torch.equal(one, sample_tau(8, TauConfig(), torch.Generator().manual_seed(5)))


@pytest.mark.parametrize(("alpha", "s"), [(0.0, 1.0), (1.5, 0.0), (1.5, 1.5), (math.nan, 1.0)])
def test_a_law_that_is_none_is_refused(alpha: float, s: float) -> None:
    """Non-positive alpha and s outside (0, 1]."""
    with pytest.raises(ConfigError, match="alpha > 0 and 0 < s <= 1"):
        TauConfig("beta", alpha, s)


def test_an_unknown_law_is_refused() -> None:
    """A misspelt name does not become another law."""
    kind: Any = "betta"
    with pytest.raises(ConfigError, match="kind 'betta' is not one of uniform, beta"):
        TauConfig(kind)


def test_masked_loss_is_its_formula() -> None:
    """Σ mask · (v - target)² / (Σ mask + 1e-8): masked entries count neither above nor below."""
    v, goal = pair()
    mask = (torch.rand(3, 4, 5, generator=generator("mask")) < 0.6).float()
    total = sum(
        float((v[i, j, k] - goal[i, j, k]) ** 2)
        for i in range(3)
        for j in range(4)
        for k in range(5)
        if mask[i, j, k]
    )
    expected = total / (float(mask.sum()) + 1e-8)
    assert float(masked_loss(v, goal, mask)) == pytest.approx(expected, rel=1e-6)


def test_masked_entries_have_no_gradient_and_an_empty_mask_no_loss() -> None:
    """Whatever the network says past the end of an episode does not matter."""
    v, goal = (x.float() for x in pair())
    v.requires_grad_()
    mask = torch.ones(3, 4, 5)
    mask[:, 2:] = 0
    masked_loss(v, goal, mask).backward()
    assert v.grad is not None
    assert bool((v.grad[:, 2:] == 0).all())
    assert bool((v.grad[:, :2] != 0).all())
    assert float(masked_loss(v.detach(), goal, torch.zeros(3, 4, 5))) == 0


def test_loss_is_fp32_for_low_precision() -> None:
    """A bfloat16 velocity is widened before the difference."""
    v, goal = pair()
    found = masked_loss(v.bfloat16(), goal.float(), torch.ones(3, 4, 5))
    assert found.dtype == torch.float32
    exact = float((v.bfloat16().double() - goal.float().double()).square().mean())
    assert float(found) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("config", LAWS, ids=lambda c: f"{c.kind} {c.alpha}")
def test_flow_times_by_address_have_their_law(config: TauConfig) -> None:
    """Kolmogorov-Smirnov over consecutive rows; a row's τ does not depend on the others."""
    rows = torch.arange(COUNT)
    found = taus_at(rows, config, seed=5)
    assert found.dtype == torch.float32
    assert stats.kstest(found.double().numpy(), LAWS[config]).pvalue > 1e-3
    assert torch.equal(taus_at(rows.flip(0), config, seed=5), found.flip(0))
    assert not torch.equal(taus_at(rows, config, seed=6), found)


@pytest.mark.parametrize("limit", [1, 2, 5, 16])
def test_delays_have_their_shares(limit: int) -> None:
    """P(d) ∝ exp(limit - 1 - d): a chi-square test over consecutive rows."""
    shares = delay_shares(limit)
    for d in range(limit - 1):
        assert shares[d] / shares[d + 1] == pytest.approx(math.e)
    assert sum(shares) == pytest.approx(1.0)
    found = delays_at(torch.arange(COUNT), limit, seed=5)
    assert found.dtype == torch.int64
    assert 0 <= int(found.min()) <= int(found.max()) < limit
    seen = np.bincount(found.numpy(), minlength=limit)
    expected = np.array(shares) * COUNT
    often = expected > 5
    if often.sum() > 1:
        kept = expected[often] * seen[often].sum() / expected[often].sum()
        assert stats.chisquare(seen[often], kept).pvalue > 1e-3


def test_delays_are_independent_of_flow_times() -> None:
    """They come from a stream of their own: no correlation over consecutive rows."""
    rows = torch.arange(COUNT)
    tau, delay = taus_at(rows, TauConfig("uniform"), 5), delays_at(rows, 5, 5)
    assert abs(np.corrcoef(tau.numpy(), delay.numpy())[0, 1]) < 4 / math.sqrt(COUNT)
    assert torch.equal(delays_at(rows[7:9], 5, 5), delay[7:9])
