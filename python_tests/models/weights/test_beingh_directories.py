"""Being-H0.5's directories: the golden numbers from disk, and commands from images and words."""

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

import vlakern
from vlakern.errors import ConfigError
from vlakern.models.weights.families import open_policy, read_policy
from vlakern.models.weights.golden import compare, read_golden
from vlakern.types import Observation

ONES = ("norm1", "norm2", "layernorm", "norm.weight", "norm_mot_gen", ".ls1", ".ls2", "mlp1.0")
LLM = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 16}
LLM |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 640}
LLM |= {"rope_theta": 1000000, "rms_norm_eps": 1e-6}
VIT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "image_size": 112}
VIT |= {"num_attention_heads": 4, "patch_size": 14, "layer_norm_eps": 1e-6}


def beingh_directory(goldens: ModuleType, directory: Path, **changes: Any) -> Path:
    """The reduced network of the golden run in two files with an index, as the release saves it."""
    directory.mkdir()
    shapes = goldens.read_names(goldens.GOLDEN / "beingh_names.json")
    weights = goldens.state_dict(shapes, ONES)
    places = {}
    for i in range(2):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        part = {name: weights[name] for name in list(weights)[i::2]}
        save_file(part, directory / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(goldens.GOLDEN / "processing/tokenizer.json", directory)
    llm = LLM | {"expert_config": {"hidden_size": 48, "intermediate_size": 80}}
    config = {"model_type": "beingh", "llm_config": llm, "vit_config": VIT, "template": "being_h0"}
    config |= {"force_image_size": 56, "use_flow_matching": True, "select_layer": -1}
    (directory / "config.json").write_text(json.dumps(config | changes))
    return directory


def test_golden_numbers_from_a_directory(goldens: ModuleType, tmp_path: Path) -> None:
    """The files on disk compute what the release's code does, in every stage."""
    directory = beingh_directory(goldens, tmp_path / "beingh")
    errors = compare(read_policy(directory).model, read_golden(goldens.GOLDEN / "beingh.npz"))
    assert max(errors.values()) < 1e-4, errors


def test_it_acts(goldens: ModuleType, tmp_path: Path) -> None:
    """Unified vectors in and out, one pair of tags around all views, ImageNet's colours."""
    directory = beingh_directory(goldens, tmp_path / "beingh")
    records = open_policy(directory).records
    assert records.config.prompt.wrap_views == "all"
    assert "You are Being-H0, a helpful" in records.config.prompt.template[0]
    assert records.processing.image.mean == (0.485, 0.456, 0.406)
    said = "According to the instruction 'open it', what's the micro-step actions in the next 16"
    assert records.processing.prompt.texts("open it") == [f"{said} steps?"]
    policy = vlakern.load(directory, device="cpu")
    images = {view: np.full((60, 60, 3), 90, np.uint8) for view in ("view_0", "view_1")}
    seen = Observation(images, np.zeros(200, np.float32), "pick up the cube")
    actions = policy.act(seen, seed=0).actions
    assert actions.shape == (16, 200)
    assert np.isfinite(actions).all()


def test_an_unknown_conversation_is_refused(goldens: ModuleType, tmp_path: Path) -> None:
    """Its system message is part of every prompt; the file may say it."""
    directory = beingh_directory(goldens, tmp_path / "other", template="other")
    with pytest.raises(ConfigError, match="template is 'other', expected being_h0"):
        open_policy(directory)
    said = beingh_directory(goldens, tmp_path / "said", template="other", system_message="Hello.")
    assert open_policy(said).records.config.prompt.template[0].startswith("<|im_start|>system\nHel")
