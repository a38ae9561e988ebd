"""A batch in parts is the same batch, and each sample draws its own numbers wherever it is."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import ops
from vlakern.data.collate import TrainBatch
from vlakern.errors import ConfigError
from vlakern.flow.path import delays_at, taus_at
from vlakern.models import preset
from vlakern.models.config import PromptConfig
from vlakern.train import TrainConfig
from vlakern.train.step import Draws, Objective, counts

TINY = preset("tiny")
MakeBatch = Callable[..., TrainBatch]
MakeObjective = Callable[..., Objective]
MakeDraws = Callable[..., Draws]
ROBOTS = 4


def gradients(objective: Objective) -> dict[str, Tensor]:
    return {n: w.grad.clone() for n, w in objective.named_parameters() if w.grad is not None}


def update(
    objective: Objective, parts: Sequence[tuple[TrainBatch, Draws]]
) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradients of several parts that know the denominators of all."""
    objective.zero_grad()
    config = objective.config
    totals = torch.stack([counts(b, config, d, ROBOTS) for b, d in parts]).sum(0)
    found = [objective(batch, drawn, totals)["loss"] for batch, drawn in parts]
    for loss in found:
        loss.backward()
    return float(sum(loss.detach().double() for loss in found)), gradients(objective)


@pytest.mark.parametrize("shares", ["elements", "embodiments", "samples"])
@pytest.mark.parametrize("delay", [0, 4])
@pytest.mark.parametrize(
    "cut", [([0, 1], [2, 3]), ([3], [1, 0], [2]), ([2, 0, 3], [1])], ids=["halves", "three", "odd"]
)
def test_parts_add_up_to_the_whole(
    fp32: TrainConfig,
    make_objective: MakeObjective,
    make_batch: MakeBatch,
    draws: MakeDraws,
    shares: str,
    delay: int,
    cut: tuple[list[int], ...],
) -> None:
    """Whether parts are micro-batches or ranks: loss and gradients within 1e-6 of the whole's."""
    changes: dict[str, Any] = {"shares": shares, "delay": delay}
    config = dataclasses.replace(fp32, **changes, foresight=0.5, language=0.3)
    objective = make_objective(config)
    order = [n for part in cut for n in part]
    whole, expected = update(objective, [(make_batch(TINY, order, robots=True), draws(order))])
    parts = [(make_batch(TINY, one, robots=True), draws(one)) for one in cut]
    loss, found = update(objective, parts)
    assert loss == pytest.approx(whole, rel=1e-6)
    assert found.keys() == expected.keys()
    error = torch.stack([(found[n] - g).norm() / g.norm() for n, g in expected.items()])
    # Of single small tensors too, up to the order in which fp32 sums were taken.
    assert float(error.square().mean().sqrt()) < 1e-6
    assert float(error.max()) < 4e-6
    averaged = [(b, d, counts(b, config, d, ROBOTS)) for b, d in parts]
    naive = sum(float(objective(*one)["loss"].detach()) for one in averaged) / len(parts)
    assert abs(naive / whole - 1) > 1e-4


def test_counts_of_a_batch(fp32: TrainConfig, make_batch: MakeBatch, draws: MakeDraws) -> None:
    """Elements of all rows by embodiment, samples, foresight's numbers and predicted words."""
    config = dataclasses.replace(fp32, foresight=0.5, language=1.0)
    batch = make_batch(TINY, robots=True)
    h, a = TINY.chunk, TINY.action_dim
    own = [h * a, h // 2 * (a - 1), h * a, h * (a - 1)]
    elements = [3 * (own[0] + own[2]), 3 * own[1], 3 * own[3], 0]
    found = counts(batch, config, draws(), ROBOTS)
    assert found.tolist() == [*elements, 2, 1, 1, 0, 6 * TINY.state_dim, 6 + 12 + 1 + 19]
    assert found.dtype == torch.float64
    assert counts(batch, fp32, draws(), ROBOTS)[-2:].tolist() == [0, 0]


def seen_by(
    objective: Objective, batch: TrainBatch, drawn: Draws, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor]:
    """x_τ and τ that reach the network."""
    seen: list[tuple[Tensor, Tensor]] = []
    velocity = objective.model.velocity

    def watch(prefix: Any, x: Tensor, tau: Tensor, index: Tensor) -> Tensor:
        seen.append((x.detach(), tau))
        return velocity(prefix, x, tau, index)

    monkeypatch.setattr(objective.model, "velocity", watch)
    objective(batch, drawn, counts(batch, objective.config, drawn, ROBOTS))
    return seen[0]


@pytest.mark.parametrize("delay", [0, 5])
def test_a_sample_draws_the_same_in_any_company(
    fp32: TrainConfig,
    make_objective: MakeObjective,
    make_batch: MakeBatch,
    draws: MakeDraws,
    monkeypatch: pytest.MonkeyPatch,
    delay: int,
) -> None:
    """Its number and the seed decide, bit by bit; another number or seed draws anew."""
    objective = make_objective(dataclasses.replace(fp32, delay=delay))
    batch = make_batch(TINY)
    x, tau = seen_by(objective, batch, draws([5, 900, 7, 2**40]), monkeypatch)
    alone = make_batch(TINY, [3])
    x_alone, tau_alone = seen_by(objective, alone, draws([2**40]), monkeypatch)
    assert torch.equal(x[9:], x_alone)
    assert torch.equal(tau[9:], tau_alone)
    for other in (draws([2**40 + 1]), draws([2**40], seed=8)):
        x_other, tau_other = seen_by(objective, alone, other, monkeypatch)
        assert not torch.equal(x_alone, x_other)
        assert not torch.equal(tau_alone, tau_other)


def test_given_actions_are_clean_and_have_no_loss(
    fp32: TrainConfig,
    make_objective: MakeObjective,
    make_batch: MakeBatch,
    draws: MakeDraws,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Real-time chunking: before d τ is 1 and x the action; after it all is as without delay."""
    config = dataclasses.replace(fp32, delay=5, flow_samples=8)
    objective, batch, drawn = make_objective(config), make_batch(TINY), draws()
    free = make_objective(dataclasses.replace(config, delay=0))
    x, tau = seen_by(objective, batch, drawn, monkeypatch)
    x_free, tau_free = seen_by(free, batch, drawn, monkeypatch)
    delay = delays_at(torch.arange(32), 5, drawn.seed)
    given = torch.arange(TINY.chunk) < delay[:, None]
    assert set(delay.tolist()) == {0, 1, 2, 3, 4}
    actions = batch.action_BHA.repeat_interleave(8, 0)
    assert torch.equal(x[given], actions[given])
    assert torch.equal(tau[given], torch.ones(int(given.sum())))
    assert torch.equal(x[~given], x_free[~given])
    late = (~given).nonzero(as_tuple=True)
    torch.testing.assert_close(tau[late], tau_free[late[0]], rtol=1e-6, atol=0)
    mask = batch.mask_BHA.repeat_interleave(8, 0) * ~given[..., None]
    assert float(counts(batch, config, drawn)[0]) == float(mask.sum())
    noise = ops.flow_noise(torch.arange(32), TINY.chunk, TINY.action_dim, seed=drawn.seed)
    with torch.no_grad():
        prefix = objective.model.prefill(batch.prefix)
        index = torch.arange(4).repeat_interleave(8)
        error = objective.model.velocity(prefix, x, tau, index) - (actions - noise)
        found = objective(batch, drawn, counts(batch, config, drawn))["flow"]
    expected = float((error.square() * mask).sum() / mask.sum())
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_delay_must_leave_an_action(
    fp32: TrainConfig, make_batch: MakeBatch, draws: MakeDraws
) -> None:
    """Six actions bear delays below six."""
    batch = make_batch(TINY)
    counts(batch, dataclasses.replace(fp32, delay=TINY.chunk), draws())
    with pytest.raises(ConfigError, match=r"train\.delay is 7, expected at most the chunk's 6"):
        counts(batch, dataclasses.replace(fp32, delay=TINY.chunk + 1), draws())


def test_flow_times_are_those_of_the_op(fp32: TrainConfig) -> None:
    """Drawn apart or inside flow_mix, a row has one τ up to its last bits."""
    rows = torch.tensor([0, 7, 2**50])
    _, tau = ops.flow_mix(torch.zeros(3, 1, 1), seed=3, rows=rows)
    torch.testing.assert_close(taus_at(rows, fp32.tau, 3), tau, rtol=1e-6, atol=1e-7)


STATE_FIRST = dataclasses.replace(
    TINY, prompt=PromptConfig(("{state}", "{views}", "{instruction}"))
)


def test_detached_keys_and_values_stop_the_flow_losss_gradient(
    fp32: TrainConfig, make_objective: MakeObjective, make_batch: MakeBatch, draws: MakeDraws
) -> None:
    """The loss keeps its value, actions their gradient; what the prefix is made of has none."""
    batch, drawn = make_batch(STATE_FIRST), draws()
    attached = make_objective(fp32, STATE_FIRST)
    loss, all_ = update(attached, [(batch, drawn)])
    detached = make_objective(dataclasses.replace(fp32, detach=True), STATE_FIRST)
    same, some = update(detached, [(batch, drawn)])
    assert same == loss
    encoders = ("model.vision", "model.embed", "model.mot.semantic", "model.state_encoder")
    assert {name for name in all_ if name not in some} == {
        name for name in all_ if name.startswith(encoders)
    }
    torch.testing.assert_close(
        some["model.action_decoder.2.weight"], all_["model.action_decoder.2.weight"]
    )
    # The state token runs through the action expert, too, and its share is gone.
    name = "model.mot.action.layers.0.k_proj.weight"
    assert not torch.allclose(some[name], all_[name])


def test_detached_keys_and_values_leave_the_other_losses(
    fp32: TrainConfig, make_objective: MakeObjective, make_batch: MakeBatch, draws: MakeDraws
) -> None:
    """The semantic expert's gradient is then that of words and foresight alone."""
    config = dataclasses.replace(fp32, detach=True, language=0.5, foresight=0.25)
    objective, batch, drawn = make_objective(config, STATE_FIRST), make_batch(STATE_FIRST), draws()
    _, found = update(objective, [(batch, drawn)])
    empty = dataclasses.replace(batch, mask_BHA=torch.zeros_like(batch.mask_BHA))
    _, expected = update(objective, [(empty, drawn)])
    for name in found:
        if name.startswith(("model.vision", "model.embed", "model.mot.semantic", "foresight")):
            torch.testing.assert_close(found[name], expected[name], msg=name)
    assert float(found["model.vision.patch.weight"].norm()) > 0
