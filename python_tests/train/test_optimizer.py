"""From gradients to weights: schedule, decay, clipping, masters, average, and their state."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlakern.errors import CheckpointError
from vlakern.models import VLA, preset
from vlakern.train import TrainConfig
from vlakern.train.optimizer import Average, Optimizer, in_bf16, learning_rate
from vlakern.train.step import Draws, Objective, counts

TINY = preset("tiny")
Make = Callable[..., Any]


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {n for n, w in module.named_parameters() if not torch.equal(w, before[n])}


def backward(objective: Objective, batch: Any, drawn: Draws) -> float:
    loss = objective(batch, drawn, counts(batch, objective.config, drawn))["loss"]
    loss.backward()
    return float(loss.detach())


def test_only_matrices_decay(fp32: TrainConfig) -> None:
    """With a zero gradient, AdamW shrinks projections and leaves norms, biases and embeddings."""
    model = VLA(TINY)
    optimizer = Optimizer(model, dataclasses.replace(fp32, weight_decay=0.5))
    before = snapshot(model)
    assert set(optimizer.gradients) == set(before)
    optimizer.update(1e-2)
    plain = {n for n, w in before.items() if w.ndim < 2}
    untouched = plain | {"embed_tokens.weight", "vision.position"}
    assert changed(model, before) == set(before) - untouched
    name = "mot.action.layers.0.q_proj.weight"
    torch.testing.assert_close(
        dict(model.named_parameters())[name].detach(), before[name] * (1 - 1e-2 * 0.5)
    )


def test_one_update_is_adamw_by_hand(fp32: TrainConfig) -> None:
    """Bias-corrected moments with the recipe's betas, and decay apart from the gradient."""
    line = nn.Linear(2, 1, bias=False)
    config = dataclasses.replace(fp32, betas=(0.8, 0.95), weight_decay=0.1, clip=1e9)
    optimizer = Optimizer(line, config)
    w, m, v = line.weight.detach().double().clone(), torch.zeros(1, 2), torch.zeros(1, 2)
    for n, gradient in enumerate((torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]])), 1):
        line.weight.grad = gradient.clone()
        optimizer.update(0.01)
        m, v = 0.8 * m + 0.2 * gradient, 0.95 * v + 0.05 * gradient.square()
        step = (m / (1 - 0.8**n)) / ((v / (1 - 0.95**n)).sqrt() + 1e-8)
        w = w * (1 - 0.01 * 0.1) - 0.01 * step
        torch.testing.assert_close(line.weight.detach().double(), w, rtol=1e-6, atol=1e-7)
    assert line.weight.grad is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_updates_nothing(
    fp32: TrainConfig, make_objective: Make, make_batch: Make, draws: Make, value: float
) -> None:
    """Weights and moments stay, the norm says it, and the next update works."""
    objective, batch = make_objective(fp32), make_batch(TINY)
    optimizer = Optimizer(objective, fp32)
    backward(objective, batch, draws())
    optimizer.update(1e-3)
    before = snapshot(objective)
    moments = {name: one.clone() for name, one in optimizer.state_dict().items()}
    backward(objective, batch, draws())
    optimizer.gradients["model.vision.position"][0, 0] = value
    assert not math.isfinite(optimizer.update(1e-3))
    assert not changed(objective, before)
    assert all(torch.equal(one, moments[name]) for name, one in optimizer.state_dict().items())
    backward(objective, batch, draws())
    assert math.isfinite(optimizer.update(1e-3))
    assert changed(objective, before)


def test_gradients_are_clipped_to_the_norm(fp32: TrainConfig) -> None:
    """What is told is the norm before; AdamW gets the norm after, all weights together."""
    pair = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])
    optimizer = Optimizer(pair, dataclasses.replace(fp32, clip=0.5))
    for weight, value in zip(pair.parameters(), (3.0, -4.0), strict=True):
        weight.grad = torch.full((1, 1), value)
    assert optimizer.update(0.0) == pytest.approx(5.0)
    moments = optimizer.state_dict()
    share = 1 - fp32.betas[0]
    assert float(moments["exp_avg/0.weight"]) == pytest.approx(share * 0.3, rel=1e-5)
    assert float(moments["exp_avg/1.weight"]) == pytest.approx(share * -0.4, rel=1e-5)


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


def test_each_stage_has_its_own_schedule() -> None:
    """Warm-up is a share of the stage with a cap, and the cosine ends with the stage."""
    config = TrainConfig(
        steps=600, expert_steps=100, warmup=20, warmup_share=0.05, learning_rate=1.0, final_lr=0.0
    )
    assert [learning_rate(step, config) for step in (0, 4, 5)] == pytest.approx([0.2, 1.0, 1.0])
    assert learning_rate(99, config) == pytest.approx(0.0, abs=1e-3)
    assert [learning_rate(step, config) for step in (100, 119, 120)] == pytest.approx(
        [1 / 20, 1.0, 1.0]
    )
    assert learning_rate(599, config) == pytest.approx(0.0, abs=1e-3)


def bf16_run(
    make_objective: Make, config: TrainConfig, batch: Any, drawn: Draws, steps: int
) -> tuple[Objective, Optimizer, list[float]]:
    objective = make_objective(config)
    in_bf16(objective)
    optimizer = Optimizer(objective, config)
    losses = []
    for _ in range(steps):
        losses.append(backward(objective, batch, drawn))
        optimizer.accumulate()
        optimizer.update(2e-3)
    return objective, optimizer, losses


def test_bf16_weights_have_fp32_masters(
    fp32: TrainConfig, make_objective: Make, make_batch: Make, draws: Make
) -> None:
    """Products are stored in bf16, norms in fp32; 60 updates learn what fp32 weights learn."""
    config = dataclasses.replace(fp32, bf16=True, flow_samples=1, weight_decay=0.0)
    batch = make_batch(TINY)
    objective, optimizer, losses = bf16_run(make_objective, config, batch, draws(), 60)
    kinds = {name: weight.dtype for name, weight in objective.named_parameters()}
    assert kinds["model.mot.semantic.layers.0.q_proj.weight"] == torch.bfloat16
    assert (
        kinds["model.embed_tokens.weight"] == kinds["model.vision.patch.weight"] == torch.bfloat16
    )
    assert kinds["model.mot.semantic.layers.0.input_norm.weight"] == torch.float32
    assert kinds["model.vision.blocks.0.norm1.weight"] == torch.float32
    for name, weight in optimizer.weights.items():
        master = optimizer.masters[name]
        assert master.dtype == torch.float32
        assert torch.equal(weight, master.to(weight.dtype))
    masters = optimizer.masters_under("model.")
    assert masters["embed_tokens.weight"] is optimizer.masters["model.embed_tokens.weight"]
    assert "vision.position" not in masters
    plain, usual = make_objective(config), []
    reference = Optimizer(plain, config)
    for _ in range(60):
        usual.append(backward(plain, batch, draws()))
        reference.update(2e-3)
    assert losses[-1] < 0.3 * losses[0]
    assert losses[-1] == pytest.approx(usual[-1], rel=0.3)


def test_masters_keep_what_bf16_would_lose(fp32: TrainConfig) -> None:
    """A hundred updates of a thousandth of a rounding each move the weight."""
    line = nn.Linear(1, 1, bias=False)
    nn.init.constant_(line.weight, 1.0)
    optimizer = Optimizer(in_bf16(line), dataclasses.replace(fp32, weight_decay=0.0))
    for _ in range(100):
        line.weight.grad = torch.ones_like(line.weight)
        optimizer.accumulate()
        optimizer.update(1e-4)
    assert float(optimizer.masters["weight"].detach()) == pytest.approx(0.99, abs=1e-4)
    assert float(line.weight.detach()) == pytest.approx(0.99, abs=2**-8)


def test_micro_batches_add_up_in_fp32(fp32: TrainConfig) -> None:
    """Gradients of 1 and 300 times 2^-9 would lose their digits in a bf16 sum."""
    line = nn.Linear(1, 1, bias=False)
    optimizer = Optimizer(in_bf16(line), fp32)
    for value in (1.0, *[2.0**-9] * 300):
        line.weight.grad = torch.full_like(line.weight, value)
        optimizer.accumulate()
    assert float(optimizer.gradients["weight"]) == 1.0 + 300 * 2.0**-9


@pytest.mark.parametrize("bf16", [False, True])
def test_a_run_continues_bit_by_bit(
    fp32: TrainConfig, make_objective: Make, make_batch: Make, draws: Make, bf16: bool
) -> None:
    """From weights, moments, masters and the average, all flat tensors by name."""
    config, batch = dataclasses.replace(fp32, bf16=bf16), make_batch(TINY)

    def fresh() -> tuple[Objective, Optimizer, Average]:
        objective = make_objective(config)
        if bf16:
            in_bf16(objective)
        return objective, Optimizer(objective, config), Average(objective.model, 0.9)

    def go(run: tuple[Objective, Optimizer, Average], numbers: range) -> None:
        objective, optimizer, average = run
        for n in numbers:
            backward(objective, batch, draws([4 * n, 4 * n + 1, 4 * n + 2, 4 * n + 3]))
            optimizer.accumulate()
            optimizer.update(1e-3)
            average.update(objective.model, optimizer.masters_under("model."))

    one, two = fresh(), fresh()
    go(one, range(3))
    kept = [
        {name: tensor.clone() for name, tensor in state.items()}
        for state in (one[0].state_dict(), one[1].state_dict(), one[2].state_dict())
    ]
    two[0].load_state_dict(kept[0])
    two[1].load_state_dict(kept[1])
    two[2].load_state_dict(kept[2], one[2].updates)
    go(one, range(3, 5))
    go(two, range(3, 5))
    for mine, other in zip(one, two, strict=True):
        for name, tensor in mine.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


def test_another_runs_state_is_refused(fp32: TrainConfig) -> None:
    """Missing, unknown and misshapen tensors are named; weights that do not train have none."""
    pair = nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 1)])
    whole = Optimizer(pair, fp32).state_dict()
    pair[0].requires_grad_(False)
    optimizer = Optimizer(pair, fp32)
    assert set(optimizer.weights) == {"1.weight", "1.bias"}
    with pytest.raises(CheckpointError, match=r"optimizer holds an unknown 'exp_avg/0\.bias'"):
        optimizer.load_state_dict(whole)
    own = optimizer.state_dict()
    with pytest.raises(CheckpointError, match=r"lacks 'step/1\.bias'"):
        optimizer.load_state_dict({n: t for n, t in own.items() if n != "step/1.bias"})
    with pytest.raises(
        CheckpointError, match=r"'exp_avg/1\.weight' of shape \[2\], expected \[1, 3"
    ):
        optimizer.load_state_dict({**own, "exp_avg/1.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"average lacks 'bias'"):
        Average(nn.Linear(1, 1), 0.9).load_state_dict({"weight": torch.zeros(1, 1)}, 3)


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


def test_average_of_no_decay_is_the_model_and_of_bf16_its_masters() -> None:
    """The recipe of the paper has none; masters are more than the rounded weights."""
    average, values = walk(3, 0.0, lambda step: float(step))
    assert float(average.weights["weight"]) == values[-1]
    line = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    held = Average(line, 0.0)
    held.update(line, {"weight": torch.tensor([[1.0 + 2.0**-20]])})
    assert held.weights["weight"].dtype == torch.float32
    assert float(held.weights["weight"]) == 1.0 + 2.0**-20
