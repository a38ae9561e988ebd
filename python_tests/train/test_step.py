"""One training step: the loss it minimises, the schedule, the average, and what it skips."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vlakern import ops
from vlakern.data.collate import Augment, ClipStore, TrainBatch, collate
from vlakern.flow import TauConfig, integrate, interpolate, sample_tau
from vlakern.models import VLA, preset
from vlakern.models.tokenizer import fit_tokenizer
from vlakern.models.weights import Processing
from vlakern.models.weights.native import make_space
from vlakern.space import Embodiment, Field, Slot, SlotMap, VectorStats
from vlakern.train import TrainConfig
from vlakern.train.step import (
    Average,
    Foresight,
    flow_loss,
    learning_rate,
    make_optimizer,
    train_step,
)

RUN = TrainConfig(
    steps=100, batch_size=4, flow_samples=8, learning_rate=4e-3, warmup=10, weight_decay=0.0
)
FP32 = dataclasses.replace(RUN, bf16=False)


@pytest.fixture(scope="module")
def batch() -> TrainBatch:
    """Four samples of noise from two tasks."""
    config, rng, words = preset("tiny"), np.random.default_rng(0), ["push", "open"]
    state, action = (SlotMap("arm", n, (Slot("all", "1", 0, n),)) for n in (7, 5))
    fields = (Field("all", (0, 7)),), (Field("all", (0, 5)),)
    robot = Embodiment("arm", "arm", 20.0, ("a", "b"), 7, 5, *fields)
    units = (VectorStats.units(slots.names()) for slots in (state, action))
    shape = (10, config.vision.image_size, config.vision.image_size, 3)
    store = ClipStore(
        [{v: rng.integers(0, 256, shape, dtype=np.uint8) for v in ("a", "b")} for _ in words],
        [rng.normal(size=(10, config.state_dim)).astype(np.float32) for _ in words],
        [rng.normal(size=(10, config.action_dim)).astype(np.float32) for _ in words],
        words,
        make_space(robot, state, action, Processing("none", "none"), *units),
    )
    pairs = np.array([(0, 0), (0, 3), (1, 0), (1, 8)])
    tokenizer = fit_tokenizer(words, 300)
    return collate(config, ("a", "b"), tokenizer, store, pairs, Augment(), rng)


@pytest.fixture
def model() -> VLA:
    """The smallest network with repeatable weights."""
    torch.manual_seed(0)
    return VLA(preset("tiny"))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
def test_the_loss_is_that_of_uncached_single_samples(
    model: VLA, batch: TrainBatch, given: bool
) -> None:
    """Each prefix serves its draws of (τ, noise) in order, and masked actions do not count."""
    config = dataclasses.replace(FP32, flow_samples=3)
    index = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    action, mask = batch.action_BHA[index], batch.mask_BHA[index]
    draws = rng(5)
    if given:
        noise, tau = torch.randn(action.shape, generator=draws), sample_tau(12, config.tau, draws)
        found = flow_loss(model, batch, config, rng(5), noise_RHA=noise, tau_R=tau)
    else:
        seed = int(torch.randint(2**63 - 1, (), generator=draws))
        noise = ops.flow_noise(torch.arange(12), *action.shape[1:], seed=seed)
        _, tau = ops.flow_mix(action, seed=seed)
        found = flow_loss(model, batch, config, rng(5))
    x = interpolate(noise, action, tau)
    total = 0.0
    with torch.no_grad():
        for draw in range(3):
            rows = slice(draw, None, 3)
            velocity = model.velocity_uncached(batch.prefix, x[rows], tau[rows])
            error = (velocity - (action - noise)[rows]).square() * mask[rows]
            total += float(error.sum())
    assert float(found.detach()) == pytest.approx(total / float(mask.sum()), rel=1e-5)
    assert bool((mask == 0).any())


@pytest.mark.parametrize("config", [FP32, RUN], ids=["fp32", "bf16"])
def test_one_batch_can_be_learnt_by_heart(
    model: VLA, batch: TrainBatch, config: TrainConfig
) -> None:
    """100 steps bring the loss below a tenth, and the flow then ends near the actions."""
    optimizer, generator, losses = make_optimizer(model, config), rng(), []
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        losses.append(train_step(model, optimizer, batch, config, generator)["loss"])
    assert np.mean(losses[-10:]) < 0.1 * np.mean(losses[:5])
    with torch.no_grad():
        prefix = model.prefill(batch.prefix)
        noise = torch.randn(batch.action_BHA.shape, generator=rng(1))
        found = integrate(lambda x, tau: model.velocity(prefix, x, tau), noise, steps=10)
    error = (found - batch.action_BHA).square() * batch.mask_BHA
    spread = batch.action_BHA.square() * batch.mask_BHA
    assert float(error.sum()) < 0.1 * float(spread.sum())


def test_bf16_loss_and_gradients_are_near_fp32(model: VLA, batch: TrainBatch) -> None:
    """Products in bfloat16 leave weights and gradients in fp32 and move the loss by < 1 %."""
    losses, norms = [], []
    for config in (FP32, RUN):
        optimizer = make_optimizer(model, config)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        metrics = train_step(model, optimizer, batch, config, rng(3))
        losses.append(metrics["loss"])
        norms.append(metrics["grad_norm"])
        grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
        assert {grad.dtype for grad in grads} == {torch.float32}
    assert 0 < abs(losses[1] / losses[0] - 1) < 0.01
    assert abs(norms[1] / norms[0] - 1) < 0.05


def snapshot(model: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


def changed(model: nn.Module, before: list[Tensor]) -> bool:
    return any(
        not torch.equal(weight, old) for weight, old in zip(model.parameters(), before, strict=True)
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_loss_that_is_not_finite_updates_nothing(
    model: VLA, batch: TrainBatch, value: float
) -> None:
    """Weights and the optimizer's moments stay; the metrics say it; the next step works."""
    optimizer, generator = make_optimizer(model, FP32), rng()
    train_step(model, optimizer, batch, FP32, generator)
    before = snapshot(model)
    moments = [state["exp_avg"].clone() for state in optimizer.state.values()]
    actions = batch.action_BHA.clone()
    actions[1, 0, 0] = value
    metrics = train_step(
        model, optimizer, dataclasses.replace(batch, action_BHA=actions), FP32, generator
    )
    assert not math.isfinite(metrics["loss"]) or not math.isfinite(metrics["grad_norm"])
    assert not changed(model, before)
    for state, moment in zip(optimizer.state.values(), moments, strict=True):
        assert torch.equal(state["exp_avg"], moment)
    assert math.isfinite(train_step(model, optimizer, batch, FP32, generator)["loss"])
    assert changed(model, before)


def test_a_gradient_that_is_not_finite_updates_nothing(model: VLA, batch: TrainBatch) -> None:
    """Also where the loss itself is finite."""
    before = snapshot(model)
    hook = model.vision.position.register_hook(lambda gradient: gradient * math.inf)
    metrics = train_step(model, make_optimizer(model, FP32), batch, FP32, rng())
    hook.remove()
    assert math.isfinite(metrics["loss"])
    assert not math.isfinite(metrics["grad_norm"])
    assert not changed(model, before)


def test_gradients_are_clipped_to_the_norm(model: VLA, batch: TrainBatch) -> None:
    """The metric is the norm before; the gradients have the norm after."""
    config = dataclasses.replace(FP32, clip=0.01)
    metrics = train_step(model, make_optimizer(model, config), batch, config, rng())
    norms = [float(w.grad.norm()) for w in model.parameters() if w.grad is not None]
    assert metrics["grad_norm"] > 0.1
    assert math.hypot(*norms) == pytest.approx(0.01, rel=1e-3)


def test_the_same_generator_gives_the_same_weights(batch: TrainBatch) -> None:
    """Two runs of three steps end in the same bits; another seed of the draws does not."""

    def run(seed: int) -> list[Tensor]:
        torch.manual_seed(0)
        model, generator = VLA(preset("tiny")), rng(seed)
        optimizer = make_optimizer(model, RUN)
        for _ in range(3):
            train_step(model, optimizer, batch, RUN, generator)
        return snapshot(model)

    one, two, other = run(1), run(1), run(2)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_only_matrices_decay(model: VLA, batch: TrainBatch) -> None:
    """With a zero gradient, AdamW shrinks projections and leaves norms, biases and embeddings."""
    config = dataclasses.replace(FP32, weight_decay=0.5)
    optimizer = make_optimizer(model, config)
    names = {weight: name for name, weight in model.named_parameters()}
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for weight in names:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    decayed = {n for n, w in model.named_parameters() if not torch.equal(w, before[n])}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    assert "mot.action.layers.0.q_proj.weight" in decayed
    assert "vision.patch.weight" in decayed
    plain = {n for n, w in before.items() if w.ndim < 2} | {"embed_tokens.weight"}
    assert set(before) - decayed == plain | {"vision.position"}


def test_learning_rate_warms_up_and_decays_as_a_cosine() -> None:
    """Linear to the peak, half way between peak and floor in the middle, the floor at the end."""
    config = TrainConfig(steps=1010, warmup=10, learning_rate=2.0, final_lr=0.1)
    assert [learning_rate(step, config) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert learning_rate(10, config) == pytest.approx(2.0)
    assert learning_rate(510, config) == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert learning_rate(260, config) == pytest.approx(2.0 * (0.1 + 0.9 * (0.5 + 0.5**1.5)))
    assert learning_rate(1009, config) == pytest.approx(0.2, rel=1e-4)
    assert learning_rate(5000, config) == pytest.approx(0.2)
    rates = [learning_rate(step, config) for step in range(10, 1010)]
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))


def test_learning_rate_without_warm_up_starts_at_the_peak() -> None:
    """Zero steps of warm-up divide by nothing; more warm-up than steps only rises."""
    assert learning_rate(0, TrainConfig(steps=10, warmup=0, learning_rate=3.0)) == 3.0
    short = TrainConfig(steps=5, warmup=10, learning_rate=3.0)
    assert [learning_rate(step, short) for step in (0, 4)] == pytest.approx([0.3, 1.5])


def walk(steps: int, decay: float, of: Callable[[int], float]) -> tuple[Average, list[float]]:
    """An average over a single weight that takes the value ``of(step)``."""
    line = nn.Linear(1, 1, bias=False)
    values = [of(step) for step in range(steps + 1)]
    with torch.no_grad():
        line.weight.fill_(values[0])
        average = Average(line, decay)
        for value in values[1:]:
            line.weight.fill_(value)
            average.update(line)
    return average, values


def test_average_is_the_recursion_with_a_short_start() -> None:
    """w <- d w + (1 - d) new with d = min(decay, n / (n + 10)) at the n-th update."""
    average, values = walk(60, 0.8, lambda step: math.sin(step))
    expected = values[0]
    for n, value in enumerate(values[1:], start=1):
        d = min(0.8, n / (n + 10))
        expected = d * expected + (1 - d) * value
    assert float(average.weights["weight"]) == pytest.approx(expected, abs=1e-6)


def test_average_forgets_its_start_and_owns_its_weights() -> None:
    """After 30 updates at decay 0.999 the initial value weighs < 1e-3; nothing is shared."""
    average, _ = walk(30, 0.999, lambda step: 1.0 if step == 0 else 0.0)
    assert float(average.weights["weight"]) < 1e-3
    line = nn.Linear(1, 1)
    held = Average(line, 0.9)
    with torch.no_grad():
        line.weight.fill_(123.0)
    assert float(held.weights["weight"]) != 123.0


def test_flow_time_of_the_recipe_is_used(model: VLA, batch: TrainBatch) -> None:
    """Another law of τ is another loss on the same draws."""
    laws = (TauConfig("beta"), TauConfig("uniform"), TauConfig("logit_normal"))
    losses = [
        float(flow_loss(model, batch, dataclasses.replace(FP32, tau=law), rng()).detach())
        for law in laws
    ]
    assert len(set(losses)) == 3


def test_foresight_scores_each_view_against_its_own_episode(model: VLA, batch: TrainBatch) -> None:
    """Eight views of four samples; a head that tells the truth of one episode errs on the other."""
    foresight = Foresight(model.config)
    last = foresight.head[-1]
    assert isinstance(last, nn.Linear)
    views = torch.randn(8, model.config.vision.tokens, model.config.mot.semantic.hidden)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(batch.outcome_BS[0])
    errors = (batch.outcome_BS[0] - batch.outcome_BS).square().mean(1)
    assert batch.view_rows.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert float(foresight.loss(views, batch).detach()) == pytest.approx(float(errors.mean()))
    assert float(errors[1]) == 0.0
    assert float(errors[2]) > 0.0


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_foresight_adds_its_weighted_gradient_to_the_tower(
    model: VLA, batch: TrainBatch, weight: float
) -> None:
    """The tower's gradient is that of flow loss + weight x foresight; the loss told is flow's."""
    config = dataclasses.replace(FP32, foresight=weight, clip=1e9)
    foresight = Foresight(model.config)
    optimizer = make_optimizer(nn.ModuleList([model, foresight]), config)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    metrics = train_step(model, optimizer, batch, config, rng(), foresight)
    tower = list(model.vision.parameters())
    found = [p.grad for p in tower]
    flow = flow_loss(model, batch, config, rng())
    views = model.vision(batch.prefix.pixels_V3SS)
    total = flow + weight * foresight.loss(views, batch)
    for expected, gradient in zip(torch.autograd.grad(total, tower), found, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert metrics["loss"] == pytest.approx(float(flow.detach()), rel=1e-6)
    assert metrics["foresight"] > 0
