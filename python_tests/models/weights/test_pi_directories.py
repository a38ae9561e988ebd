"""pi0 and pi0.5 in the directories of LeRobot and openpi: one network, each its own processing."""

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import vlakern
from vlakern.errors import CheckpointError, ConfigError
from vlakern.models.processing import ImageRule, PromptRule
from vlakern.models.weights.families import open_policy, read_policy
from vlakern.models.weights.golden import compare, read_golden
from vlakern.models.weights.names import Folded
from vlakern.types import Observation

PIS = ("pi0", "pi05")


def openpi_directory(goldens: ModuleType, directory: Path, kind: str) -> Path:
    """The reduced network as openpi's converter stores it, tied weights once."""
    goldens.lerobot_directory(directory, kind, prefix="")
    for path in directory.glob("policy_*"):
        path.unlink()
    weights = load_file(directory / "model.safetensors")
    del weights["paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"]
    save_file(weights, directory / "model.safetensors")
    shutil.copytree(goldens.GOLDEN / "processing/openpi/assets", directory / "assets")
    config = {"action_dim": 7, "action_horizon": 6, "paligemma_variant": "gemma_2b"}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("writer", ["LeRobot", "openpi"])
@pytest.mark.parametrize("kind", PIS)
def test_golden_numbers_from_a_directory(
    kind: str, writer: str, goldens: ModuleType, tmp_path: Path
) -> None:
    """The file on disk computes what LeRobot's code does, in every stage."""
    if writer == "openpi":
        directory = openpi_directory(goldens, tmp_path / kind, kind)
    else:
        directory = goldens.lerobot_directory(tmp_path / kind, kind)
    golden = read_golden(goldens.GOLDEN / f"{kind}.npz")
    errors = compare(read_policy(directory).model, golden)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("kind", PIS)
def test_openpis_processing(kind: str, goldens: ModuleType, tmp_path: Path) -> None:
    """Statistics from its assets, its prompt and its cameras, of which some may be missing."""
    directory = openpi_directory(goldens, tmp_path / kind, kind)
    opened = open_policy(directory)
    assert opened.family.name == "openpi (PyTorch)"
    p, robot = opened.records.processing, opened.records.embodiment
    assert p.state == p.action == ("zscore" if kind == "pi0" else "quantile")
    assert (p.epsilon, p.image, p.execute) == ("openpi", ImageRule(fit="openpi"), 3)
    assert isinstance(p.prompt, PromptRule)
    assert p.prompt.texts(" pick_up\nit ", np.zeros(2))[0].startswith(
        "pick up it" if kind == "pi0" else "Task: pick up it, State: 128 128;\nAction: "
    )
    policy = vlakern.load(directory, device="cpu")
    state = np.linspace(-1, 1, robot.state_width).astype(np.float32)
    image = np.full((48, 64, 3), 100, np.uint8)
    seen = Observation({"base_0_rgb": image}, state, "pick up the cube")
    assert np.isfinite(policy.act(seen, seed=0).actions).all()


def test_bf16_weights_stay_mapped(goldens: ModuleType, tmp_path: Path) -> None:
    """What no fold touches is a view of the file; folds are computed in fp32."""
    directory = goldens.lerobot_directory(tmp_path / "pi0", "pi0", torch.bfloat16)
    weights = open_policy(directory).weights
    assert isinstance(weights, Folded)
    name = "mot.semantic.layers.0.up_proj.weight"
    assert weights(name).dtype == torch.bfloat16
    assert weights(name).data_ptr() == weights(name).data_ptr()
    assert weights("embed_tokens.weight").dtype == torch.float32


def test_an_openpi_directory_without_its_chunk(goldens: ModuleType, tmp_path: Path) -> None:
    """Its own training code writes no config.json: the sentence says what to write."""
    directory = openpi_directory(goldens, tmp_path / "pi0", "pi0")
    (directory / "config.json").unlink()
    with pytest.raises(ConfigError, match=r'write \{"action_horizon": N\} there'):
        open_policy(directory)
    (directory / "config.json").write_text('{"action_horizon": "6"}')
    with pytest.raises(ConfigError, match="action_horizon is '6', expected a whole number"):
        open_policy(directory)


def test_openpis_aloha_has_to_say_what_was_learnt(goldens: ModuleType, tmp_path: Path) -> None:
    """Its transforms are not in the checkpoint and change every action: they are never guessed."""
    directory = openpi_directory(goldens, tmp_path / "pi0", "pi0")
    config = {"action_horizon": 6, "adapt_to_pi": False, "relative_actions": [0, 2]}

    def relative(**changes: Any) -> tuple[int, ...]:
        said = {key: one for key, one in (config | changes).items() if one is not None}
        (directory / "config.json").write_text(json.dumps(said))
        return open_policy(directory).records.processing.relative

    assert relative() == (0, 2)
    assert relative(adapt_to_pi=None, relative_actions=None) == ()
    with pytest.raises(ConfigError, match="adapt_to_pi is True: joints with flipped signs"):
        relative(adapt_to_pi=True)
    for wrong in ([7], [0.5], "all", [-1], [True]):
        with pytest.raises(ConfigError, match=r"relative_actions is .*, expected indices below"):
            relative(relative_actions=wrong)

    path = next((directory / "assets").rglob("norm_stats.json"))
    stats = json.loads(path.read_text())
    for vector in stats["norm_stats"].values():
        for name, values in vector.items():
            vector[name] = [*values, *values][:14] if len(values) >= 7 else values
    path.write_text(json.dumps(stats))
    with pytest.raises(ConfigError, match=r"adapt_to_pi is missing \(joints with flipped"):
        relative(adapt_to_pi=None)
    with pytest.raises(ConfigError, match=r"relative_actions is missing \(indices"):
        relative(relative_actions=None)


@pytest.mark.parametrize("writer", ["LeRobot", "openpi"])
def test_a_missing_tokenizer_is_named(writer: str, goldens: ModuleType, tmp_path: Path) -> None:
    """Checkpoints of pi0 come without it: the sentence says where there is one."""
    directory = tmp_path / "pi0"
    if writer == "openpi":
        openpi_directory(goldens, directory, "pi0")
    else:
        goldens.lerobot_directory(directory, "pi0")
        path = directory / "policy_preprocessor.json"
        pipeline = json.loads(path.read_text())
        words = next(s for s in pipeline["steps"] if s["registry_name"] == "tokenizer_processor")
        words["config"]["tokenizer_name"] = "google/paligemma-3b-pt-224"
        path.write_text(json.dumps(pipeline))
    (directory / "tokenizer.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"copy tokenizer\.json of 'google/paligemma-3b-pt-224'"
    ):
        open_policy(directory)


def test_an_adapter_beside_a_config_is_called_so(goldens: ModuleType, tmp_path: Path) -> None:
    """LeRobot's fine-tuning with adapters writes the whole config.json and no weights."""
    directory = goldens.lerobot_directory(tmp_path / "pi0", "pi0")
    (directory / "model.safetensors").rename(directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"an adapter alone: merge it into its base model"):
        open_policy(directory)


def test_a_robot_among_several_is_named_in_the_config(goldens: ModuleType, tmp_path: Path) -> None:
    """openpi's base checkpoints have statistics of many; the sentence says how to name one."""
    directory = openpi_directory(goldens, tmp_path / "pi0", "pi0")
    stats = next((directory / "assets").rglob("norm_stats.json"))
    other = directory / "assets/other/norm_stats.json"
    other.parent.mkdir()
    other.write_text(stats.read_text().replace('"mean"', '"average"'))
    with pytest.raises(
        CheckpointError, match=r'write "asset_id": "lab/arm" or another of them into'
    ):
        open_policy(directory)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"asset_id": "lab/arm"}))
    assert open_policy(directory).records.embodiment.state_width
    for wrong in ("lab/leg", "../assets/lab/arm", "/etc"):
        path.write_text(json.dumps(config | {"asset_id": wrong}))
        with pytest.raises(CheckpointError, match=r"config\.json\.asset_id names"):
            open_policy(directory)


def test_a_layer_that_is_missing_is_told_from_one_too_many(
    goldens: ModuleType, tmp_path: Path
) -> None:
    """The trunk's last layer is gone: the expert's is not unknown."""
    directory = goldens.lerobot_directory(tmp_path / "pi0", "pi0")
    weights = load_file(directory / "model.safetensors")
    kept = {name: w for name, w in weights.items() if "language_model.layers.2." not in name}
    save_file(kept, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"the expert has 3 layers, the trunk 2, expected as"):
        open_policy(directory)


def test_a_leftover_tensor_is_an_error(goldens: ModuleType, tmp_path: Path) -> None:
    """Naming it: a policy with a part that is not computed would act wrongly."""
    directory = goldens.lerobot_directory(tmp_path / "pi0", "pi0")
    weights = load_file(directory / "model.safetensors") | {"model.memory.weight": torch.ones(2)}
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds 'model\.memory\.weight', which is unknown"):
        open_policy(directory)


def test_a_tensor_of_whole_numbers_is_an_error(goldens: ModuleType, tmp_path: Path) -> None:
    """Weights are floating point, whatever the shape."""
    directory = goldens.lerobot_directory(tmp_path / "pi0", "pi0")
    weights = load_file(directory / "model.safetensors")
    weights["model.action_in_proj.bias"] = torch.zeros(48, dtype=torch.int32)
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'model\.action_in_proj\.bias' is I32"):
        open_policy(directory)
