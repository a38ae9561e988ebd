"""SmolVLA's directories: the golden numbers from disk, and what is not supported named."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vlakern.errors import ConfigError
from vlakern.models.weights.families import open_policy, read_policy
from vlakern.models.weights.golden import compare, read_golden


def test_golden_numbers_from_a_directory(goldens: ModuleType, tmp_path: Path) -> None:
    """The file on disk computes what LeRobot's code does, in every stage."""
    directory = goldens.lerobot_directory(tmp_path / "smolvla", "smolvla")
    golden = read_golden(goldens.GOLDEN / "smolvla.npz")
    errors = compare(read_policy(directory).model, golden)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("add_image_special_tokens", True, "add_image_special_tokens is True, only False"),
        ("adapt_to_pi_aloha", True, "adapt_to_pi_aloha is true: joints with flipped signs"),
        ("use_delta_joint_actions_aloha", True, "use_delta_joint_actions_aloha is true"),
        ("self_attn_every_n_layers", 4, "self_attn_every_n_layers = 4 say otherwise"),
        ("attention_mode", "self_attn", "say otherwise than the expert's tensors"),
        ("resize_imgs_with_padding", [512, 512], r"is not \[64, 64\]"),
    ],
)
def test_what_is_not_supported_is_named(
    key: str, value: Any, message: str, goldens: ModuleType, tmp_path: Path
) -> None:
    """A switch that would change the actions is never passed over."""
    directory = goldens.lerobot_directory(tmp_path / "smolvla", "smolvla")
    config = json.loads((directory / "config.json").read_text()) | {key: value}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        open_policy(directory)
