"""SmolVLA: every tensor of its file is used, and the network computes what LeRobot's does."""

from dataclasses import replace
from types import ModuleType

import pytest
import torch

from vlakern.errors import CheckpointError
from vlakern.models.config import PromptConfig
from vlakern.models.presets import preset
from vlakern.models.vla import VLA
from vlakern.models.weights.family import native_shapes
from vlakern.models.weights.golden import STAGES, compare, read_golden
from vlakern.models.weights.names import Binding, bind
from vlakern.models.weights.smolvla import smolvla_config, smolvla_table

ONES = ("layer_norm", "layernorm", "norm.weight")
HEAD = "vlm_with_expert.vlm.lm_head.weight"
Shapes = dict[str, tuple[int, ...]]


def bound(shapes: Shapes) -> Binding:
    config = smolvla_config(shapes, "here")
    return bind(smolvla_table(config), native_shapes(config), shapes, "here")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_full_size_names(prefix: str, goldens: ModuleType) -> None:
    """Every tensor of a full-size file is used; the head that would predict words is not."""
    shapes = goldens.read_names(goldens.GOLDEN / "smolvla_full.json")
    shapes = {f"{prefix}{name}": shape for name, shape in shapes.items()}
    assert smolvla_config(shapes, "here") == replace(
        preset("smolvla"), prompt=PromptConfig(("{views}", "{instruction}", "{state}"))
    )
    found = bound(shapes)
    used = {name for sources, _ in found.made.values() for name in sources}
    assert set(shapes) - used == {f"{prefix}{HEAD}"}
    assert found.skipped == {f"{prefix}{HEAD}": "no word is predicted"}


def test_an_expert_with_fewer_layers_is_refused(goldens: ModuleType) -> None:
    """LeRobot can leave layers of the trunk without an expert; here each has one."""
    shapes = goldens.read_names(goldens.GOLDEN / "smolvla_full.json")
    fewer = {name: shape for name, shape in shapes.items() if "lm_expert.layers.15." not in name}
    with pytest.raises(CheckpointError, match="the expert has 15 layers, the trunk 16"):
        bound(fewer)


def network(goldens: ModuleType, dtype: torch.dtype) -> VLA:
    """The reduced network of the golden run, through the table."""
    shapes = goldens.read_names(goldens.GOLDEN / "smolvla_names.json")
    with torch.device("meta"):
        made = VLA(smolvla_config(shapes, "here"))
    weight = bound(shapes).weights(goldens.state_dict(shapes, ONES).__getitem__)
    made.load_state_dict({name: weight(name).to(dtype) for name in made.state_dict()}, assign=True)
    return made.eval()


def test_every_stage_agrees(goldens: ModuleType) -> None:
    """In fp32 to 1e-5 of LeRobot's own numbers, from the image to the chunk after ten steps.

    Every second layer's keys and values are the expert's projections of the trunk's.
    """
    golden = read_golden(goldens.GOLDEN / "smolvla.npz")
    errors = compare(network(goldens, torch.float32), golden)
    assert max(errors.values()) < 1e-5, errors


def test_bf16_is_as_good_as_theirs(goldens: ModuleType) -> None:
    """At most twice as far from fp32 as LeRobot's own bf16."""
    golden = read_golden(goldens.GOLDEN / "smolvla.npz")
    errors = compare(network(goldens, torch.bfloat16), golden)
    worst = {stage: errors[stage] / golden.gap[stage] for stage in STAGES}
    assert max(worst.values()) < 2.0, worst
