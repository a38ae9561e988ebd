"""Every preset is a network of the size that it is said to have."""

import pytest
import torch
from torch import nn

from vlakern.errors import ConfigError
from vlakern.models import PRESETS, VLA, preset

EVERY = pytest.mark.parametrize("name", PRESETS)


def build(name: str) -> VLA:
    with torch.device("meta"):
        return VLA(preset(name))


def millions(module: nn.Module, digits: int = 0) -> float:
    return round(sum(weight.numel() for weight in module.parameters()) / 1e6, digits)


@EVERY
def test_every_preset_is_a_whole_network(name: str) -> None:
    """Vision tower, both experts of one depth, encoders and a decoder of the declared widths."""
    config, model = preset(name), build(name)
    assert len(model.vision.blocks) == config.vision.layers > 0
    depths = {len(expert.layers) for expert in (model.mot.semantic, model.mot.action)}
    assert depths == {config.mot.layers}
    *_, connector = (one for one in model.vision.connector.modules() if isinstance(one, nn.Linear))
    *_, decoder = (one for one in model.action_decoder.modules() if isinstance(one, nn.Linear))
    assert connector.out_features == config.mot.semantic.hidden
    assert decoder.out_features == config.action_dim
    assert hasattr(model, "state_encoder") == (config.state != "words")
    if config.state != "words":
        assert (
            model.state_encoder.get_parameter(
                "weight" if config.state_encoder == "linear" else "0.weight"
            ).shape[1]
            == config.state_dim
        )


@pytest.mark.parametrize(
    ("name", "count"),
    [("pi0", 778 - 2 - 4 * 27), ("pi05", 813 - 2 - 4 * 27), ("smolvla", 500 - 1 + 1 - 4 * 12)],
)
def test_the_families_are_of_the_published_number_of_tensors(name: str, count: int) -> None:
    """LeRobot's state dicts less the heads of words; q, k and v of vision layers are one here.

    SmolVLA's connector has no bias, ours always.
    """
    assert len(build(name).state_dict()) == count


@pytest.mark.parametrize(
    ("name", "heads", "total"),
    [
        ("pi0", 257152 * (2048 + 1024), 4.03),
        ("pi05", 257152 * (2048 + 1024), 4.14),
        ("smolvla", 49280 * 960, 0.45),
    ],
)
def test_the_families_are_of_the_published_sizes(name: str, heads: int, total: float) -> None:
    """With the heads of words, which nothing reads here."""
    assert round((millions(build(name)) + heads / 1e6) / 1e3, 2) == total


@pytest.mark.parametrize(("name", "expert"), [("rethink-2b", 440), ("rethink-2b-wide", 705)])
def test_sizes_are_the_published_ones(name: str, expert: int) -> None:
    """Trunk 1,409 M (Qwen3-1.7B less its embedding of 311 M), expert 440 M or 705 M."""
    model = build(name)
    assert millions(model.mot.semantic) == 1409
    assert millions(model.mot.action) == expert
    assert millions(model.embed_tokens) == 311


def test_the_wide_expert_without_its_norms_is_the_published_count() -> None:
    """704.6 M are 28 layers of q, o (2048 x 1024), k, v (1024 x 1024) and three 1024 x 6144."""
    layer = 2 * 2048 * 1024 + 2 * 1024 * 1024 + 3 * 1024 * 6144
    norms = 28 * (2 * 1024 + 2 * 128) + 1024
    expert = build("rethink-2b-wide").mot.action
    assert sum(weight.numel() for weight in expert.parameters()) == 28 * layer + norms
    assert round(28 * layer / 1e6, 1) == 704.6


def test_the_vision_tower_is_internvit_300m() -> None:
    """24 layers of 1024; with the 1025 positions of its 448 px training, 304.0 M parameters."""
    tower = build("rethink-2b").vision
    assert (len(tower.blocks), tower.config.hidden) == (24, 1024)
    positions = (1025 - tower.position.shape[0]) * 1024
    count = sum(weight.numel() for weight in tower.parameters()) + positions
    connector = sum(weight.numel() for weight in tower.connector.parameters())
    assert round((count - connector) / 1e6, 1) == 304.0


@pytest.mark.parametrize(("name", "total"), [("rethink-2b", 2.5), ("rethink-2b-wide", 2.7)])
def test_totals_are_the_published_ones(name: str, total: float) -> None:
    """The wide expert makes the 2.7 B of the paper; the narrow one 2.5 B."""
    assert round(millions(build(name)) / 1e3, 1) == total


def test_a_view_of_224_pixels_is_64_tokens() -> None:
    """16 x 16 patches of 14 px, four of which become one token."""
    assert preset("rethink-2b").vision.tokens == 64


def test_the_policy_that_ships_fits_into_the_wheel() -> None:
    """In bfloat16 the weights of metaworld-small stay below 12 MB."""
    assert millions(build("metaworld-small"), 3) * 2 < 12


def test_an_unknown_preset_is_refused_by_name() -> None:
    """The sentence says which presets there are."""
    with pytest.raises(ConfigError, match=r"no preset 'huge'.*tiny.*rethink-2b-wide"):
        preset("huge")
