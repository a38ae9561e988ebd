"""Being-H0.5 in the directories of LeRobot's port: its own files, its own actions.

``golden/lerobot_being_h05*`` is written by ``make_golden_beingh_lerobot.py``.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import vlakern
from vlakern.errors import CheckpointError, ConfigError, VlakernError
from vlakern.models.weights.beingh import beingh_config, beingh_table
from vlakern.models.weights.beingh_lerobot import port_rules
from vlakern.models.weights.convert import to_native
from vlakern.models.weights.families import open_policy
from vlakern.models.weights.family import native_shapes
from vlakern.models.weights.golden import distance
from vlakern.models.weights.names import bind
from vlakern.types import Observation

ONES = ("layernorm", "norm.weight", "norm_mot_gen", "lambda_", "mlp1.0")
FILES = ("config.json", "policy_preprocessor.json", "policy_postprocessor.json")
Change = Callable[[dict[str, Any]], Any]


def port_directory(goldens: ModuleType, directory: Path, name: str = "") -> Path:
    """The reduced network with the files that LeRobot's port wrote for it."""
    shutil.copytree(goldens.GOLDEN / "processing" / f"lerobot_being_h05{name}", directory)
    shapes = goldens.read_names(goldens.GOLDEN / "lerobot_being_h05_names.json")
    save_file(goldens.state_dict(shapes, ONES), directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("name", ["", "_quantiles"])
def test_it_acts_as_the_port(
    name: str, goldens: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From camera images, of which one is missing, named numbers and words to a robot's commands,
    within 1e-4; as a native directory, too."""
    source = port_directory(goldens, tmp_path / "port", name)
    assert open_policy(source).family.name == "LeRobot Being-H0.5"
    to_native(source, tmp_path / "native")
    with np.load(goldens.GOLDEN / f"lerobot_being_h05{name}.npz", allow_pickle=False) as file:
        golden = dict(file)
    given, noise = goldens.beingh_observation()
    for directory in (source, tmp_path / "native"):
        policy = vlakern.load(directory, device="cpu", dtype="fp32")
        monkeypatch.setattr(policy, "_noise", lambda seeds: noise[None])
        chunk = policy.act(Observation(**given), seed=0).actions
        assert policy.execute == 8
        assert distance(chunk, golden["chunk"]) < 1e-4
        monkeypatch.setattr(policy.space, "decode", lambda x, _: x.numpy())
        unified = policy.act(Observation(**given), seed=0).actions
        assert distance(unified, golden["unified"]) < 1e-4
        assert set(np.unique(chunk[:, [6, 11]])) <= {0.0, 1.0}


def test_every_tensor_of_the_full_size_is_used(goldens: ModuleType) -> None:
    """Or skipped for a stated reason."""
    shapes = goldens.read_names(goldens.GOLDEN / "lerobot_being_h05_full.json")
    author = json.loads((goldens.GOLDEN / "processing/lerobot_being_h05/config.json").read_text())[
        "author_config"
    ]
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    llm = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28} | heads
    llm |= {"vocab_size": 151936} | {
        "expert_config": {"hidden_size": 1024, "intermediate_size": 3072}
    }
    vit = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    vit |= {"num_attention_heads": 16, "patch_size": 14, "image_size": 448}
    config, positions = beingh_config(author | {"llm_config": llm, "vit_config": vit}, "full")
    table = beingh_table(config, positions, port_rules(config, positions))
    binding = bind(table, native_shapes(config), shapes, "full")
    assert set(binding.skipped) == {"model.language_model.lm_head.weight"}


def pack(change: Change) -> tuple[str, Change]:
    """A change of the step that packs the unified vectors."""

    def inside(content: dict[str, Any]) -> None:
        step = next(s for s in content["steps"] if s["registry_name"].endswith("semantic_pack"))
        change(step["config"])

    return "policy_preprocessor.json", inside


def norm(content: dict[str, Any]) -> None:
    content["steps"][2]["config"]["norm_map"]["STATE"] = "QUANTILE10"


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (("config.json", lambda c: c.pop("author_config")), "author_config is 'None', expected"),
        (("config.json", lambda c: c.update(chunk_size=8)), "chunk_size is 8, author_config says"),
        (("config.json", lambda c: c.update(image_size=112)), "image_size is 112, author_config"),
        (("config.json", lambda c: c.update(n_action_steps="8")), "expected a whole number"),
        (("config.json", lambda c: c.update(input_features={})), "has no observation.state.NAME"),
        (
            ("config.json", lambda c: c["author_config"].update(use_mpg=True, mpg_lambda=0.1)),
            "author_config.use_mpg is true: the release then makes every chunk twice",
        ),
        (("policy_preprocessor.json", norm), "has STATE 'QUANTILE10' and eps"),
        (("policy_preprocessor.json", lambda c: c["steps"].pop()), None),
        (("policy_preprocessor.json", lambda c: c["steps"].pop(3)), "semantic_pack' is missing"),
        (
            ("policy_postprocessor.json", lambda c: c["steps"].append({"registry_name": "x"})),
            "step 'x' is there twice or not known",
        ),
        (pack(lambda c: c.update(prompt_template="do it")), "expected {task_description} once"),
        (
            pack(lambda c: c["state_slots"].update(arm=[2, 5])),
            "state_slots.arm is .2, 5., exp",
        ),
        (pack(lambda c: c["state_slots"].update(arm=[199, 201])), "state_slots.arm is"),
        (pack(lambda c: c["state_slots"].update(arm="all")), "state_slots.arm is all, expected"),
        (pack(lambda c: c.update(state_slots=[])), "expected places by name"),
        (pack(lambda c: c["action_slots"].pop("base_motion")), "action_slots is not what"),
        (pack(lambda c: c.update(image_keys=[])), "views is"),
    ],
)
def test_what_is_not_the_ports_is_named(
    where: tuple[str, Change], message: str | None, goldens: ModuleType, tmp_path: Path
) -> None:
    """In a sentence; the last step, for the device, may be missing."""
    directory = port_directory(goldens, tmp_path / "port")
    path = directory / where[0]
    content = json.loads(path.read_text())
    where[1](content)
    path.write_text(json.dumps(content))
    if message is None:
        open_policy(directory)
        return
    with pytest.raises(ConfigError, match=message):
        open_policy(directory)


def test_statistics_that_are_not_there(goldens: ModuleType, tmp_path: Path) -> None:
    """A missing file, a part without numbers, and normalised grippers."""
    directory = port_directory(goldens, tmp_path / "port", "_quantiles")
    after = directory / "policy_postprocessor.json"
    content = json.loads(after.read_text())
    names = [step["registry_name"] for step in content["steps"]]
    assert names.count("being_h05_binary_action") == 2
    after.write_text(json.dumps({"steps": [content["steps"][i] for i in (0, 2, 4)]}))
    with pytest.raises(ConfigError, match="normalises actions without 'being_h05_binary_action'"):
        open_policy(directory)
    after.write_text(json.dumps(content))
    file = next(directory.glob("policy_preprocessor_step_*.safetensors"))
    stats = {k: v for k, v in load_file(file).items() if "base_position" not in k}
    save_file(stats, file)
    with pytest.raises(ConfigError, match=r"state\.base_position.*q01"):
        open_policy(directory)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"normalizer_processor\.safetensors is missing"):
        open_policy(directory)


def test_files_of_an_earlier_port_are_refused(goldens: ModuleType, tmp_path: Path) -> None:
    """And no damage escapes as another exception."""
    for name in FILES[1:]:
        directory = port_directory(goldens, tmp_path / name)
        for damage in ("{}", '{"steps": 3}', '{"steps": [3]}', "[]", ""):
            (directory / name).write_text(damage)
            with pytest.raises(VlakernError):
                open_policy(directory)
