"""Chunks that are led to decided actions: the engine's integration against one written out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from vlakern.errors import ConfigError, InputError, Unsupported
from vlakern.flow import Guidance, soft_mask
from vlakern.infer import Policy, load
from vlakern.infer.engine import Engine
from vlakern.testing import assert_accurate
from vlakern.types import ActionPrefix, Observation, PrefixForm

F64 = torch.float64
LOW = {"fp32": torch.float32, "bf16": torch.bfloat16}
Velocity = Callable[[Tensor, float], Tensor]


def guidance_of(scene, most: float = 5.0, weights: Tensor | None = None):
    noise, chunk = scene.noise(), scene.config.chunk
    decided = 1.5 * noise.flip(0) - 0.5
    if weights is None:
        weights = soft_mask(chunk, 1, 2)
    return Guidance(decided, weights[:, None].expand_as(noise), most)


def pulled(v: Tensor, x: Tensor, tau: float, guidance: Guidance) -> Tensor:
    """Eq. 2 to 4 of arXiv 2506.07339 with the identity as the Jacobian."""
    if tau == 1:
        return v
    r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
    c = guidance.most if tau == 0 else min(guidance.most, (1 - tau) / (tau * r2))
    predicted = x + (1 - tau) * v
    return v + c * guidance.weights_RHA.to(x) * (guidance.decided_RHA.to(x) - predicted)


def integrated(
    velocity: Velocity, x: Tensor, steps: int, solver: str, g: Guidance, present: Tensor
) -> Tensor:
    """Three Runge-Kutta methods by hand; slots that are not present stay."""

    def slope(x: Tensor, tau: float) -> Tensor:
        return present * pulled(velocity(x, tau), x, tau, g)

    for k in range(steps):
        begin, middle, end = k / steps, (k + 0.5) / steps, (k + 1) / steps
        first = slope(x, begin)
        if solver == "euler":
            x = x + first / steps
        elif solver == "midpoint":
            x = x + slope(x + first / (2 * steps), middle) / steps
        else:
            x = x + (first + slope(x + first / steps, end)) / (2 * steps)
    return x


@torch.inference_mode()
def by_hand(lab: ModuleType, scene, dtype: torch.dtype, guidance: Guidance) -> Tensor:
    """The network's own modules in one dtype, the solver in fp32, or in fp64 for fp64."""
    wide = torch.promote_types(dtype, torch.float32)
    model, batch = lab.network_as(scene.name, dtype), scene.batch(dtype)
    prefix = model.prefill(batch, model.vision(batch.pixels_V3SS))
    index, noise = torch.arange(len(scene.asked)), scene.noise().to(wide)

    def velocity(x: Tensor, tau: float) -> Tensor:
        times = torch.full((len(x),), tau, dtype=wide)
        return model.velocity(prefix, x.to(dtype), times, index).to(wide)

    config, present = scene.config, scene.slot_mask().to(wide)
    return integrated(velocity, noise, config.steps, config.solver, guidance, present)


def by_engine(scene, dtype: str, guidance: Guidance | None, threads: int = 1) -> Tensor:
    engine, batch = scene.engine(dtype, threads=threads), scene.batch()
    engine.take_pixels(batch.pixels_V3SS)
    engine.vision(scene.views)
    engine.prefix(batch, scene.views)
    rows = len(scene.asked)
    where = (engine.kv, batch.cu_prefix.int(), torch.arange(rows, dtype=torch.int32))
    mask = scene.slot_mask().expand(rows, -1)
    return engine.integrate(scene.noise(), *where, slot_mask=mask, guidance=guidance)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
@pytest.mark.parametrize("name", ["tiny", "tiny-pi05", "tiny-smolvla"])
@pytest.mark.parametrize("dtype", LOW)
def test_the_engine_leads_as_the_equations_say(
    lab: ModuleType, name: str, solver: str, dtype: str
) -> None:
    """fp32 within 1e-5 of the fp64 loop, bf16 by the 2x rule; absent slots keep their noise."""
    # Four steps: fp32 holds their times exactly.
    scene = lab.Scene(name, steps=4, solver=solver)
    guidance = guidance_of(scene)
    found = by_engine(scene, dtype, guidance)
    exact = by_hand(lab, scene, F64, guidance)
    if dtype == "fp32":
        largest = float(exact.abs().max())
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5 * largest)
    assert_accurate(found, exact, by_hand(lab, scene, LOW[dtype], guidance), "actions")
    absent = scene.slot_mask() == 0
    assert torch.equal(found[..., absent], scene.noise()[..., absent])
    free = by_engine(scene, dtype, None)
    assert (found - free).abs().max() > 0.05


def test_without_weight_the_bits_are_those_without_guidance(lab: ModuleType) -> None:
    """Rows of weight 0 may hold NaN; with most = 0 weights do not count."""
    scene = lab.Scene("tiny", steps=4)
    free = by_engine(scene, "fp32", None)
    none = torch.zeros(scene.config.chunk)
    led = guidance_of(scene, weights=none)
    spoilt = Guidance(torch.full_like(led.decided_RHA, torch.nan), led.weights_RHA)
    assert torch.equal(by_engine(scene, "fp32", spoilt), free)
    assert torch.equal(by_engine(scene, "fp32", guidance_of(scene, most=0.0)), free)


def test_threads_and_neighbours_do_not_change_the_bits(lab: ModuleType) -> None:
    scene = lab.Scene("tiny", steps=4)
    guidance = guidance_of(scene)
    found = by_engine(scene, "bf16", guidance)
    assert torch.equal(by_engine(scene, "bf16", guidance, threads=3), found)
    one = Guidance(guidance.decided_RHA[1:2], guidance.weights_RHA[1:2])
    assert torch.equal(by_engine(scene.only(1), "bf16", one)[0], found[1])


def test_full_weight_reaches_what_was_decided(lab: ModuleType) -> None:
    """With beta = steps the first step lands near it, and none after leaves."""
    scene = lab.Scene("tiny", steps=50)
    led = guidance_of(scene, most=50.0, weights=torch.ones(scene.config.chunk))
    there, present = led.decided_RHA, scene.slot_mask() == 1
    before, after = (
        (by_engine(scene, "fp32", one) - there)[..., present].abs().max() for one in (None, led)
    )
    assert after < 0.02 * before


def by_differences(velocity: Velocity, x: Tensor, tau: float, g: Guidance) -> Tensor:
    """The correction with the Jacobian of the predicted chunk, number by number in fp64."""
    r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
    c = g.most if tau == 0 else min(g.most, (1 - tau) / (tau * r2))
    ahead = x + (1 - tau) * velocity(x, tau)
    error = g.weights_RHA.to(x) * (g.decided_RHA.to(x) - ahead)
    pull, step = torch.zeros_like(x), 1e-4
    for h in range(x.shape[1]):
        for a in range(x.shape[2]):
            moved = torch.zeros_like(x)
            moved[:, h, a] = step
            up, down = (y + (1 - tau) * velocity(y, tau) for y in (x + moved, x - moved))
            pull[:, h, a] = ((up - down) / (2 * step) * error).sum((1, 2))
    return velocity(x, tau) + c * pull


@torch.inference_mode()
def test_the_exact_form_is_the_jacobians_product(lab: ModuleType) -> None:
    """The torch engine against central differences of the network in fp64, written out."""
    scene = lab.Scene("tiny").only(0, 1)
    batch, wide = scene.batch(), scene.batch(F64)
    led = replace(guidance_of(scene), exact=True)
    model = lab.network_as("tiny", torch.float32)
    engine = Engine(model, backend="torch", steps=2, max_batch=2, max_views=2, max_prefix=64)
    found = engine.integrate(engine.prefill(batch), scene.noise(), guidance=led)
    right = lab.network_as("tiny", F64)
    prefix = right.prefill(wide, right.vision(wide.pixels_V3SS))

    def velocity(x: Tensor, tau: float) -> Tensor:
        return right.velocity(prefix, x, torch.full((len(x),), tau, dtype=F64))

    x = scene.noise().double()
    for tau in (0.0, 0.5):
        x = x + by_differences(velocity, x, tau, led) / 2
    torch.testing.assert_close(found.double(), x, rtol=0, atol=1e-5 * float(x.abs().max()))
    cheap = engine.integrate(engine.prefill(batch), scene.noise(), guidance=guidance_of(scene))
    assert (cheap - found).abs().max() > 0.01


def test_a_policy_through_torch_takes_every_form(directory: Path, policy: Policy) -> None:
    """The cheap form is the CPU engine's; the exact one leads, too, and takes a backward pass."""
    through = load(directory, device="cpu", backend="torch")
    both = [
        one.act(policy_sees(), seed=4, prefix=ActionPrefix(DECIDED, 2, "cheap")).actions
        for one in (policy, through)
    ]
    np.testing.assert_allclose(both[1], both[0], atol=1e-3)
    exact = through.act(policy_sees(), seed=4, prefix=ActionPrefix(DECIDED, 2, "exact"))
    free = through.act(policy_sees(), seed=4)
    away, before = (np.abs(one.actions[:2] - DECIDED[:2]).mean() for one in (exact, free))
    assert away < before
    assert np.abs(exact.actions - both[1]).max() > 1e-3


def policy_sees() -> Observation:
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
    return Observation({"front": image}, rng.normal(size=7).astype(np.float32), "open")


DECIDED = np.random.default_rng(5).normal(size=(4, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def policy(directory: Path) -> Policy:
    return load(directory, device="cpu")


def test_a_policy_leads_to_the_prefix_in_its_own_numbers(policy: Policy) -> None:
    """(action - mean) / std, weights 1, 1, then falling to 0 where the prefix ends."""
    found = policy.act(policy_sees(), seed=4, prefix=ActionPrefix(DECIDED, 2, "cheap")).actions
    known = torch.zeros(1, 6, 5)
    known[0, :4] = torch.from_numpy((DECIDED - 0.1 * np.arange(5)) / 2.0)
    weights = soft_mask(6, 2, 2)[:, None].expand(1, 6, 5)
    assert policy._engine is not None
    with torch.inference_mode():
        batch = policy._prompts([policy_sees()], [policy_sees().state])
        policy._engine.prepare(policy._images(policy_sees()))
        prefix = policy._engine.prefill(batch)
        led = Guidance(known, weights)
        x = policy._engine.integrate(prefix, policy._noise([4]), guidance=led)
    np.testing.assert_allclose(found, x[0].numpy() * 2.0 + 0.1 * np.arange(5), atol=1e-4)
    free = policy.act(policy_sees(), seed=4).actions
    away, before = (np.abs(one[:2] - DECIDED[:2]).mean() for one in (found, free))
    assert away < 0.5 * before


def test_a_prefix_of_nothing_is_a_chunk_of_its_own(policy: Policy) -> None:
    free = policy.act(policy_sees(), seed=4).actions
    none = ActionPrefix(np.zeros((0, 5), np.float32), 0, "cheap")
    assert np.array_equal(policy.act(policy_sees(), seed=4, prefix=none).actions, free)


def test_what_cannot_lead_is_refused(policy: Policy) -> None:
    """Packed weights have no Jacobian; counts and numbers are checked."""
    with pytest.raises(ConfigError, match="expected auto or torch"):
        load("metaworld-small", backend="graph")  # pyright: ignore[reportArgumentType]
    with pytest.raises(Unsupported, match="no backward pass"):
        policy.act(policy_sees(), prefix=ActionPrefix(DECIDED, 2, "exact"))
    bad: list[tuple[ActionPrefix, str]] = [
        (ActionPrefix(DECIDED, 5, "cheap"), "5 frozen actions of 4"),
        (ActionPrefix(DECIDED * np.nan, 1, "cheap"), "not finite"),
        (ActionPrefix(DECIDED[:, :4], 1, "cheap"), "action is"),
    ]
    for prefix, sentence in bad:
        with pytest.raises(InputError, match=sentence):
            policy.act(policy_sees(), prefix=prefix)
    unknown: PrefixForm = "soft"  # pyright: ignore[reportAssignmentType]
    with pytest.raises(InputError, match="expected one of frozen, cheap, exact"):
        policy.act(policy_sees(), prefix=ActionPrefix(DECIDED, 1, unknown))
