"""LeRobot's own processor files give its own numbers, and damaged ones are named.

``golden/processing`` is written by ``make_golden_processing.py`` with lerobot 0.4.4.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from vlakern.errors import CheckpointError, ConfigError
from vlakern.models.prompts import Prompts
from vlakern.models.tokenizer import TextTokenizer
from vlakern.models.weights.lerobot_processors import MODES, Normalised, read_processors
from vlakern.space import ActionSpace, Embodiment, Field, Normalizer, slot_map

GOLDEN = Path(__file__).parent / "golden" / "processing"
CASES = json.loads((GOLDEN / "cases.json").read_text())
SLOTS = slot_map("pad-32")
NAMES = SLOTS.names()
FAMILIES = {"pi0": ("zscore", "min_max"), "pi05": ("quantile",) * 2, "smolvla": ("zscore",) * 2}
every_family = pytest.mark.parametrize("family", FAMILIES)


def space_of(
    widths: tuple[int, int], relative: tuple[int, ...] = (), **modes: Normalised
) -> ActionSpace:
    """An arm whose numbers are padded to 32."""
    seen, done = ((Field("vector", (0, width)),) for width in widths)
    robot = Embodiment("arm", SLOTS.name, 10.0, ("top",), *widths, seen, done)
    plain = Normalised("none", {}, "nothing")
    parts = [modes.get(part, plain) for part in ("state", "action")]
    state, action = (
        Normalizer(part, one.mode, one.stats(NAMES), "lerobot")
        for part, one in zip(("state", "action"), parts, strict=True)
    )
    return ActionSpace(robot, SLOTS, SLOTS, "native", state, action, relative)


@every_family
def test_numbers_are_lerobots(family: str) -> None:
    """Normalised states and commands, also of a number that never moved."""
    case, found = CASES[family], read_processors(GOLDEN / f"lerobot_{family}")
    assert (found.state.mode, found.action.mode) == FAMILIES[family]
    state, chunks = np.array(case["state"]), np.array(case["chunks"])
    widths = state.shape[-1], chunks.shape[-1]
    space = space_of(widths, state=found.state, action=found.action)
    seen = space.encode_state(state)
    np.testing.assert_allclose(seen[:, : widths[0]], case["normalised"], rtol=2e-5, atol=2e-6)
    assert not seen[:, widths[0] :].any()
    padded = np.zeros((*chunks.shape[:2], 32), np.float32)
    padded[..., : widths[1]] = chunks
    commands = space.decode(torch.from_numpy(padded), state)
    np.testing.assert_allclose(commands, case["commands"], rtol=2e-6, atol=2e-6)


@every_family
def test_tokens_are_lerobots(family: str) -> None:
    """First token, newline or state in words, and the cut of what is too long."""
    case, found = CASES[family], read_processors(GOLDEN / f"lerobot_{family}")
    assert found.most_tokens == (200 if family == "pi05" else 48)
    tokenizer = TextTokenizer.from_file(GOLDEN / "tokenizer.json", 1000)
    prompts = Prompts(found.prompt("<bos>", "padded"), tokenizer)
    width = len(case["state"][0])
    space = space_of((width, 7), state=found.state)
    states = space.encode_state(np.array(case["state"]), np.float64)
    for task, state, ids in zip(CASES["tasks"], states, case["tokens"], strict=True):
        assert prompts(task, state) == ids


def test_relative_actions_are_lerobots() -> None:
    """What is subtracted before normalisation comes back after it, on the masked numbers."""
    case = CASES["relative"]
    state, commands = np.array(case["state"]), np.array(case["commands"])
    space = space_of((8, 7), relative=(0, 1, 2, 3, 4, 5))
    relative = space.unify(commands, state)[..., :7]
    np.testing.assert_allclose(relative, case["relative"], rtol=0, atol=1e-6)
    padded = np.zeros((2, 4, 32), np.float32)
    padded[..., :7] = case["relative"]
    back = space.decode(torch.from_numpy(padded), state)
    np.testing.assert_allclose(back, case["back"], rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match=r"relative is \[7\], expected indices below 7"):
        space_of((8, 7), relative=(7,))


def edited(tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Path:
    """A copy whose steps were changed: of the pre-processor, of the post-processor."""
    target = tmp_path / "policy"
    shutil.copytree(GOLDEN / "lerobot_pi05", target)
    files = [target / f"policy_{part}processor.json" for part in ("pre", "post")]
    contents = [json.loads(file.read_text()) for file in files]
    change(*({one["registry_name"]: one for one in c["steps"]} for c in contents))
    for file, content in zip(files, contents, strict=True):
        file.write_text(json.dumps(content))
    return target


NORMALIZER, WORDS = "normalizer_processor", "tokenizer_processor"


def renamed(pre: dict[str, Any], post: dict[str, Any]) -> None:
    names = {"observation.images.front": "observation.images.base_0_rgb", "a": "observation.b"}
    pre["rename_observations_processor"]["config"]["rename_map"] = names
    pre[WORDS]["config"]["truncation"] = False
    pre["device_processor"] |= {
        "registry_name": "relative_actions_processor",
        "config": {
            "enabled": True,
            "exclude_joints": ["Gripper"],
            "action_names": ["x", "gripper_l"],
        },
    }
    post["device_processor"] |= {
        "registry_name": "absolute_actions_processor",
        "config": {"enabled": True},
    }


def test_what_else_the_files_say(tmp_path: Path) -> None:
    """Renamed cameras, no cut, and grippers that stay absolute; numbers without names do not."""
    found = read_processors(edited(tmp_path, renamed))
    assert [(one.called, one.view) for one in found.cameras()] == [("front", "base_0_rgb")]
    assert found.most_tokens is None
    assert found.relative_indices(4) == (0, 2, 3)
    assert read_processors(GOLDEN / "lerobot_pi05").relative_indices(4) == ()


BAD: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], object], str]] = {
    "unknown step": (
        lambda pre, post: pre["device_processor"].update(registry_name="blur"),
        "policy_preprocessor.json: step 'blur' is not known",
    ),
    "unknown mode": (
        lambda pre, post: pre[NORMALIZER]["config"]["norm_map"].update(STATE="SIGMOID"),
        "norm_map.STATE is 'SIGMOID', expected one of MEAN_STD",
    ),
    "images": (
        lambda pre, post: pre[NORMALIZER]["config"]["norm_map"].update(VISUAL="MEAN_STD"),
        "norm_map.VISUAL is 'MEAN_STD', expected IDENTITY",
    ),
    "epsilon": (
        lambda pre, post: pre[NORMALIZER]["config"].update(eps=1e-3),
        "eps is 0.001, expected 1e-08",
    ),
    "no statistics": (
        lambda pre, post: pre[NORMALIZER].pop("state_file"),
        "'normalizer_processor' has no state_file: the statistics of 'observation.state'",
    ),
    "outside": (
        lambda pre, post: pre[NORMALIZER].update(state_file="../x.safetensors"),
        r"names the file '\.\./x\.safetensors', expected one inside",
    ),
    "missing file": (
        lambda pre, post: pre[NORMALIZER].update(state_file="x.safetensors"),
        r"x\.safetensors is missing, .* names it",
    ),
    "one side": (
        lambda pre, post: post["device_processor"].update(
            registry_name="absolute_actions_processor", config={"enabled": True}
        ),
        "is enabled in policy_postprocessor.json alone",
    ),
    "no state": (
        lambda pre, post: pre["pi05_prepare_state_tokenizer_processor_step"].update(
            config={"include_state_in_prompt": False}
        ),
        "leaves the state out of the prompt",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_step_is_named(name: str, tmp_path: Path) -> None:
    """One sentence: the file, the step, what was expected."""
    change, sentence = BAD[name]
    with pytest.raises((CheckpointError, ConfigError), match=sentence):
        read_processors(edited(tmp_path, change))


STATS = "policy_preprocessor_step_2_normalizer_processor.safetensors"


@pytest.mark.parametrize(
    ("key", "values", "sentence"),
    [
        ("q01", None, r"observation\.state\.q01 is missing, the normalisation quantile needs"),
        ("q99", [np.nan] * 8, r"observation\.state\.q99\[0\] is nan, expected a finite number"),
        ("q99", [1.0] * 5, r"lists of one length expected, found .*'q01': 8, 'q99': 5"),
        ("q01", [1e6] * 8, r"q01\[0\] is 1e\+06 and q99\[0\] is .* expected the lower first"),
    ],
)
def test_wrong_statistics_are_named(
    key: str, values: list[float] | None, sentence: str, tmp_path: Path
) -> None:
    """Missing, not finite, of another length or out of order: file and field."""
    target = edited(tmp_path, lambda pre, post: None)
    (file,) = target.glob("policy_preprocessor_step_*_normalizer_processor.safetensors")
    content = load_file(file)
    content.pop(f"observation.state.{key}")
    if values is not None:
        content[f"observation.state.{key}"] = np.array(values, np.float32)
    save_file(content, file)
    found = read_processors(target)
    with pytest.raises(ConfigError, match=f"{file.name}: {sentence}|{sentence}"):
        found.state.stats(NAMES)


def test_more_numbers_than_the_model_takes() -> None:
    """The widths of both are in the sentence."""
    found = read_processors(GOLDEN / "lerobot_pi05")
    with pytest.raises(ConfigError, match=r"has 8 numbers, expected at most the 4"):
        found.state.stats(NAMES[:4])


def test_statistics_beside_the_weights(tmp_path: Path) -> None:
    """Up to LeRobot 0.3 they are buffers of the model; what was never filled is infinite."""
    mapping = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
    config = {"normalization_mapping": mapping, "tokenizer_max_length": 48}
    (tmp_path / "config.json").write_text(json.dumps(config))
    one = {key: np.array([0.5, 2.0], np.float32) for key in ("mean", "std")}
    buffers = {f"normalize_inputs.buffer_observation_state.{k}": v for k, v in one.items()}
    buffers |= {f"unnormalize_outputs.buffer_action.{k}": 2 * v for k, v in one.items()}
    buffers["model.action_in_proj.weight"] = np.zeros((2, 2), np.float32)
    save_file(buffers, tmp_path / "model.safetensors")
    found = read_processors(tmp_path)
    assert found.newline
    assert found.state.stats(NAMES).mean[:3] == (0.5, 2.0, 0.0)
    assert found.action.stats(NAMES).std[:3] == (1.0, 4.0, 1.0)
    assert found.action.stats(NAMES).present[:3] == (True, True, False)
    buffers["unnormalize_outputs.buffer_action.std"][1] = np.inf
    save_file(buffers, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"model.safetensors: action.std\[1\] is inf, expected a"):
        read_processors(tmp_path).action.stats(NAMES)
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"policy_preprocessor.json is missing, and .* no sta"
    ):
        read_processors(tmp_path)


def test_every_mode_that_the_families_use() -> None:
    """The mapping's names are LeRobot's."""
    assert set(MODES) == {"MEAN_STD", "MIN_MAX", "QUANTILES", "IDENTITY"}
