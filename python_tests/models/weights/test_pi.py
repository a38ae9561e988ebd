"""pi0 and pi0.5: every tensor of their files is used, and the network computes what theirs does."""

import re
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from vlakern.errors import CheckpointError, ConfigError
from vlakern.models.config import PromptConfig
from vlakern.models.presets import preset
from vlakern.models.vla import VLA
from vlakern.models.weights.family import native_shapes
from vlakern.models.weights.golden import STAGES, compare, read_golden
from vlakern.models.weights.names import Binding, bind
from vlakern.models.weights.pi import pi_config, pi_table

FAMILIES = ("pi0", "pi05")
ONES = ("layer_norm", "post_layernorm")
EMBED = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
HEAD = "paligemma_with_expert.paligemma.lm_head.weight"
DEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"
Shapes = dict[str, tuple[int, ...]]


def bound(shapes: Shapes) -> Binding:
    config = pi_config(shapes, "here")
    return bind(pi_table(config), native_shapes(config), shapes, "here")


def renamed(shapes: Shapes, *changes: tuple[str, str]) -> Shapes:
    for pattern, replacement in changes:
        shapes = {re.sub(pattern, replacement, name): shape for name, shape in shapes.items()}
    return shapes


WRITERS = {
    "openpi": (),
    "LeRobot": ((r"^", "model."),),
    "transformers 5.23": ((r"vision_tower\.vision_model\.", "vision_tower."), (r"^", "model.")),
    "LeRobot 0.3": (
        (r"paligemma\.model\.vision_tower\.", "paligemma.vision_tower."),
        (r"paligemma\.model\.multi_modal", "paligemma.multi_modal"),
        (r"paligemma\.model\.language_model\.", "paligemma.language_model.model."),
        (r"paligemma\.lm_head", "paligemma.language_model.lm_head"),
        (r"^", "model."),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("writer", WRITERS)
def test_full_size_names(family: str, writer: str, goldens: ModuleType) -> None:
    """Every tensor of a full-size file is used or skipped for a reason, whoever wrote it."""
    shapes = renamed(goldens.read_names(goldens.GOLDEN / f"{family}_full.json"), *WRITERS[writer])
    assert pi_config(shapes, "here") == replace(
        preset(family), prompt=PromptConfig(("{views}", "{instruction}", "{state}"))
    )
    found = bound(shapes)
    used = {name for sources, _ in found.made.values() for name in sources}
    assert used | set(found.skipped) == set(shapes)
    assert not used & set(found.skipped)
    assert len(found.skipped) == 2
    assert all("word" in reason for reason in found.skipped.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_embedding_under_either_name(family: str, goldens: ModuleType) -> None:
    """Tied weights are written once, as embedding or as head; the expert's dead head may lack."""
    shapes = goldens.read_names(goldens.GOLDEN / f"{family}_full.json")
    del shapes[DEAD]
    for lost, kept in ((EMBED, HEAD), (HEAD, EMBED)):
        alone = {name: shape for name, shape in shapes.items() if name != lost}
        found = bound(alone)
        assert found.made["embed_tokens.weight"][0] == (kept,)
        assert found.skipped == {}


def test_names_that_moved_between_the_two(goldens: ModuleType) -> None:
    """pi0.5 takes pi0's names of the time's MLP, and leaves a state's product alone."""
    shapes = goldens.read_names(goldens.GOLDEN / "pi05_full.json")
    shapes = renamed(shapes, (r"^time_mlp", "action_time_mlp")) | {"state_proj.bias": (1024,)}
    found = bound(shapes)
    assert found.made["time_mlp.0.weight"][0] == ("action_time_mlp_in.weight",)
    assert found.skipped["state_proj.bias"] == "the prompt says the state"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"proprio_history_proj.weight": (2048, 32)},
            CheckpointError,
            "'proprio_history_proj.weight'",
        ),
        ({"action_in_proj.weight": None}, CheckpointError, "lacks 'action_in_proj.weight'"),
        ({"action_in_proj.bias": (3,)}, CheckpointError, r"has shape \(3,\).* needs \(1024,\)"),
        ({"action_in_proj.weight": (1024,)}, CheckpointError, "too few dimensions"),
        ({"action_in_proj.weight": (1024, 0)}, ConfigError, "action_dim is 0"),
    ],
)
def test_another_model_is_refused(
    change: dict, error: type, message: str, goldens: ModuleType
) -> None:
    """By the name of the tensor or of the size that cannot be."""
    shapes = goldens.read_names(goldens.GOLDEN / "pi0_full.json") | change
    with pytest.raises(error, match=message):
        bound({name: shape for name, shape in shapes.items() if shape is not None})


def network(goldens: ModuleType, family: str, dtype: torch.dtype) -> VLA:
    """The reduced network of the golden run, through the table."""
    shapes = goldens.read_names(goldens.GOLDEN / f"{family}_names.json")
    config = pi_config(shapes, "here")
    with torch.device("meta"):
        made = VLA(config)
    weight = bound(shapes).weights(goldens.state_dict(shapes, ONES).__getitem__)
    made.load_state_dict({name: weight(name).to(dtype) for name in made.state_dict()}, assign=True)
    return made.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_stage_agrees(family: str, goldens: ModuleType) -> None:
    """In fp32 to 1e-5 of LeRobot's own numbers, from the image to the chunk after ten steps."""
    errors = compare(
        network(goldens, family, torch.float32), read_golden(goldens.GOLDEN / f"{family}.npz")
    )
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_is_as_good_as_theirs(family: str, goldens: ModuleType) -> None:
    """At most twice as far from fp32 as LeRobot's own bf16, which leaves the images' part fp32."""
    golden = read_golden(goldens.GOLDEN / f"{family}.npz")
    errors = compare(network(goldens, family, torch.bfloat16), golden)
    worst = {stage: errors[stage] / golden.gap[stage] for stage in STAGES if golden.gap[stage] > 0}
    assert set(worst) == {"keys", "values", "velocity", "chunk"}
    assert max(worst.values()) < 2.0, worst
