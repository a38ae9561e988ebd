"""Recipes name presets that exist, and a run that makes no sense is refused before it starts."""

import math
from dataclasses import replace
from typing import Any

import pytest

from vlakern.errors import ConfigError
from vlakern.models import preset
from vlakern.train import RECIPES, TrainConfig, recipe
from vlakern.train.config import DROPOUT_ABLATION, LoraConfig
from vlakern.train.optimizer import learning_rate


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_preset_that_can_execute_it(name: str) -> None:
    """The preset exists, and the steps executed open loop are inside its chunk."""
    found = recipe(name)
    assert 1 <= found.processing.execute <= preset(found.preset).chunk
    assert found.train.warmup < found.train.steps


def test_an_unknown_recipe_is_refused() -> None:
    """The sentence names those there are."""
    with pytest.raises(ConfigError, match="no recipe 'huge'; the recipes are metaworld-small"):
        recipe("huge")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch_size", -1),
        ("flow_samples", 0),
        ("drop_state", 1.0),
        ("drop_view", -0.1),
        ("ema", 1.0),
        ("warmup", -1),
        ("weight_decay", -0.1),
        ("shift", -2),
        ("jitter", math.nan),
        ("foresight", -0.5),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("clip", 0.0),
        ("language", -1.0),
        ("delay", -1),
        ("expert_steps", 1801),
        ("expert_steps", -1),
        ("warmup_share", -0.1),
    ],
)
def test_a_senseless_run_is_refused(name: str, value: Any) -> None:
    """The sentence names the field and what was found."""
    with pytest.raises(ConfigError, match=rf"train\.{name} is {value}, expected"):
        replace(TrainConfig(), **{name: value})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"betas": (0.9,)}, r"train\.betas is \(0\.9,\), expected two numbers of \[0, 1\)"),
        ({"betas": (0.9, 1.0)}, r"train\.betas is \(0\.9, 1\.0\), expected"),
        ({"shares": "robots"}, r"train\.shares is 'robots', expected one of elements, embod"),
        ({"frozen": True, "lora": LoraConfig(4)}, r"train\.frozen and train\.lora\.rank exclude"),
    ],
)
def test_choices_that_contradict_are_refused(change: dict[str, Any], sentence: str) -> None:
    """The sentence names the fields."""
    with pytest.raises(ConfigError, match=sentence):
        replace(TrainConfig(), **change)


def test_the_small_recipe_is_what_trained_the_policy_that_ships() -> None:
    """One stage of everything, and the numbers of that run."""
    found = recipe("metaworld-small").train
    assert found == TrainConfig()
    assert (found.steps, found.batch_size, found.flow_samples, found.ema) == (1800, 64, 4, 0.998)
    assert (found.learning_rate, found.weight_decay, found.betas) == (1e-3, 0.02, (0.9, 0.99))
    assert (found.warmup, found.final_lr, found.clip, found.foresight) == (100, 0.02, 1.0, 0.5)
    assert (found.language, found.delay, found.detach, found.lora.rank) == (0.0, 0, False, 0)
    assert [stage.part for stage in found.stages] == ["all"]


def test_the_papers_schedule() -> None:
    """40k steps of the expert and 200k of everything, each with 2000 steps of warm-up to 1e-4."""
    found = recipe("rethink").train
    assert [(s.begin, s.end, s.part) for s in found.stages] == [
        (0, 40_000, "expert"),
        (40_000, 240_000, "all"),
    ]
    assert (found.batch_size, found.weight_decay, found.betas) == (256, 1e-5, (0.9, 0.999))
    assert found.drop_state == found.drop_view == 0.2
    assert 0.2 in DROPOUT_ABLATION
    for begin, end in ((0, 40_000), (40_000, 240_000)):
        assert learning_rate(begin, found) == pytest.approx(1e-4 / 2000)
        assert learning_rate(begin + 1999, found) == pytest.approx(1e-4)
        assert learning_rate(end - 1, found) == pytest.approx(1e-7, rel=1e-2)


def test_a_run_of_other_length_keeps_its_shape() -> None:
    """A thousandth of the paper's steps: both stages are a thousandth, and so is the warm-up."""
    short = recipe("rethink").train.with_steps(240)
    assert [(s.begin, s.end) for s in short.stages] == [(0, 40), (40, 240)]
    assert learning_rate(1, short) == pytest.approx(1e-4)
    assert recipe("metaworld-small").train.with_steps(7).expert_steps == 0
