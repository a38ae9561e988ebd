"""Recipes name presets that exist, and a run that makes no sense is refused before it starts."""

import math
from dataclasses import replace
from typing import Any

import pytest

from vlakern.errors import ConfigError
from vlakern.models import preset
from vlakern.train import RECIPES, TrainConfig, recipe


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
    ],
)
def test_a_senseless_run_is_refused(name: str, value: Any) -> None:
    """The sentence names the field and what was found."""
    with pytest.raises(ConfigError, match=rf"train\.{name} is {value}, expected"):
        replace(TrainConfig(), **{name: value})
