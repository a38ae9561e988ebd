"""Low-rank updates: they start as nothing, train alone, and merge into plain weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern.errors import ConfigError
from vlakern.models import VLA, preset
from vlakern.train import TrainConfig
from vlakern.train.config import LoraConfig
from vlakern.train.lora import LoraLinear, merged
from vlakern.train.optimizer import Optimizer
from vlakern.train.stages import select
from vlakern.train.step import Objective, counts

TINY = preset("tiny")
Make = Callable[..., Any]


def velocity(model: VLA, batch: Any) -> Tensor:
    x = torch.ones(4, TINY.chunk, TINY.action_dim)
    with torch.no_grad():
        return model.velocity(model.prefill(batch.prefix), x, torch.full((4,), 0.3))


@pytest.fixture
def lora(fp32: TrainConfig) -> TrainConfig:
    """Rank 3 on two projections, at scale 2."""
    return dataclasses.replace(fp32, lora=LoraConfig(3, 6.0, ("q_proj", "down_proj")))


def train(objective: Objective, batch: Any, drawn: Any, steps: int) -> None:
    optimizer = Optimizer(objective, objective.config)
    for _ in range(steps):
        totals = counts(batch, objective.config, drawn)
        objective(batch, drawn, totals)["loss"].backward()
        optimizer.update(1e-2)


def test_updates_start_as_nothing_and_train_alone(
    fp32: TrainConfig, lora: TrainConfig, make_objective: Make, make_batch: Make, draws: Make
) -> None:
    """The same network at first; then A and B of the named projections move, and the expert."""
    plain, objective, batch = make_objective(fp32), make_objective(lora), make_batch(TINY)
    assert torch.equal(velocity(plain.model, batch), velocity(objective.model, batch))
    names = select(objective, "all")
    updates = {name for name in names if "lora_" in name}
    last = "model.mot.semantic.layers.1"
    assert updates == {
        f"model.mot.semantic.layers.0.{product}.{half}"
        for product in ("q_proj", "down_proj")
        for half in ("lora_a", "lora_b")
    }
    # The last layer's queries and MLP reach no loss without the language loss.
    assert not any(name.startswith(last) for name in names)
    before = {name: weight.clone() for name, weight in objective.named_parameters()}
    train(objective, batch, draws(), 2)
    moved = {n for n, w in objective.named_parameters() if not torch.equal(w, before[n])}
    assert updates <= moved
    assert not any(
        name.startswith(("model.mot.semantic", "model.vision", "model.embed_tokens"))
        for name in moved - updates
    )
    assert any(name.startswith("model.mot.action") for name in moved)


def test_merged_is_unmerged(
    lora: TrainConfig, make_objective: Make, make_batch: Make, draws: Make
) -> None:
    """Plain weights of a plain network give the trained network's velocity."""
    objective, batch = make_objective(lora), make_batch(TINY)
    start = velocity(objective.model, batch)
    select(objective, "all")
    train(objective, batch, draws(), 5)
    expected = velocity(objective.model, batch)
    plain = VLA(TINY)
    plain.load_state_dict(merged(objective.model.state_dict(), lora.lora))
    assert float((expected - start).abs().max()) > 0.05
    torch.testing.assert_close(velocity(plain, batch), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(velocity(plain, batch), start, rtol=1e-3, atol=1e-3)


def test_merged_weights_by_hand() -> None:
    """W + alpha / rank · B·A in the weight's dtype; other tensors pass as they are."""
    weights = {
        "x.weight": torch.tensor([[1.0, 2.0]]),
        "x.lora_a": torch.tensor([[3.0, 4.0], [0.0, 1.0]]),
        "x.lora_b": torch.tensor([[0.5, 2.0]]),
        "y": torch.tensor([7.0]),
    }
    found = merged(weights, LoraConfig(rank=2, alpha=8.0))
    assert found.keys() == {"x.weight", "y"}
    assert found["x.weight"].tolist() == [[1 + 4 * 1.5, 2 + 4 * (2.0 + 2.0)]]
    assert found["y"] is weights["y"]
    assert weights["x.weight"].tolist() == [[1.0, 2.0]]
    assert merged({"y": weights["y"]}, LoraConfig()) == {"y": weights["y"]}


def test_every_projection_can_have_one(fp32: TrainConfig, make_objective: Make) -> None:
    """All seven by default, in every layer of the semantic expert and nowhere else."""
    objective = make_objective(dataclasses.replace(fp32, lora=LoraConfig(2)))
    found = [n for n, m in objective.named_modules() if isinstance(m, LoraLinear)]
    assert len(found) == 7 * TINY.mot.layers
    assert all(name.startswith("model.mot.semantic.layers.") for name in found)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rank": -1}, r"train\.lora\.rank is -1, expected 0 or more"),
        ({"alpha": 0.0}, r"train\.lora\.alpha is 0\.0, expected more than 0"),
        ({"projections": ()}, r"train\.lora\.projections is \[\], expected some of q_proj"),
        ({"projections": ("w1",)}, r"projections is \['w1'\], expected some of q_proj, k_proj"),
    ],
)
def test_a_senseless_update_is_refused(change: dict[str, Any], sentence: str) -> None:
    """The sentence names the field and what was found."""
    with pytest.raises(ConfigError, match=sentence):
        LoraConfig(**change)
