"""Configurations survive JSON and refuse what they do not know, naming the key's full path."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from vlakern.errors import ConfigError
from vlakern.models import PRESETS, VLAConfig, preset
from vlakern.models.config import PromptConfig, VisionConfig
from vlakern.records import from_dict, to_dict


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name: str) -> None:
    """Written, read as JSON text and built again it is equal, tuples included."""
    text = json.dumps(to_dict(preset(name)))
    assert from_dict(VLAConfig, json.loads(text)) == preset(name)


def changed(path: str, value: Any) -> dict[str, Any]:
    """The tiny preset's JSON with one key set, or removed where the value is ``...``."""
    values = json.loads(json.dumps(to_dict(preset("tiny"))))
    *parents, last = path.split(".")
    inner = values
    for key in parents:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = copy.deepcopy(value)
    return values


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("mot.semantic.hiden", 3, r"config\.mot\.semantic: unknown key 'hiden'.*hidden, mlp"),
        ("mot.semantic.hidden", ..., r"config\.mot\.semantic: key 'hidden'.*missing"),
        ("vocab_size", ..., r"config: key 'vocab_size' of VLAConfig is missing"),
        ("mot.action.mlp", "80", r"config\.mot\.action\.mlp: expected int, found '80'"),
        ("mot.action.mlp", 80.0, r"config\.mot\.action\.mlp: expected int, found 80\.0"),
        ("mot.layers", True, r"config\.mot\.layers: expected int, found True"),
        ("vision.class_token", 1, r"config\.vision\.class_token: expected bool, found 1"),
        ("vision.stem", 4, r"config\.vision\.stem: expected a list, found 4"),
        ("vision.stem", [4, "8"], r"config\.vision\.stem\[1\]: expected int, found '8'"),
        ("vision.layer_scale", "x", r"config\.vision\.layer_scale: expected float, found 'x'"),
        ("vision.image_size", None, r"config\.vision\.image_size: expected int, found None"),
        ("mot.rope_theta", float("nan"), r"config\.mot\.rope_theta: expected a finite number"),
        ("mot.rope_theta", 10**400, r"config\.mot\.rope_theta: expected a finite number"),
        ("mask.prefix", "half", r"config\.mask\.prefix: expected one of .*found 'half'"),
        ("solver", [], r"config\.solver: expected one of"),
        ("time", [], r"config\.time: expected an object, found \[\]"),
        ("prompt.template", ["{views}", 1], r"config\.prompt\.template\[1\]: expected str"),
    ],
)
def test_a_wrong_key_is_named_with_its_path(path: str, value: Any, sentence: str) -> None:
    """Unknown, missing and wrong-typed keys, on every level."""
    with pytest.raises(ConfigError, match=sentence):
        from_dict(VLAConfig, changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("vision.patch_size", 9, r"config\.vision: image_size = 28 is not .* patch_size = 9"),
        ("vision.pixel_shuffle", 3, r"config\.vision: .*pixel_shuffle = 3"),
        ("vision.stem", [8], r"config\.vision: patch_size = 7 .* stride = 2"),
        ("vision.hidden", 33, r"config\.vision: hidden = 33 .* heads = 2"),
        ("mot.kv_heads", 3, r"config\.mot: q_heads = 4 .* kv_heads = 3"),
        ("mot.head_dim", 15, r"config\.mot: head_dim = 15"),
        ("mot.action.hidden", 47, r"config: mot\.action\.hidden = 47"),
        ("mot.layers", 0, r"config\.mot: MoTConfig\.layers is 0, expected 1 to"),
        ("mot.layers", 10**9, r"config\.mot: MoTConfig\.layers is 1000000000"),
        ("mot.semantic.mlp", -4, r"config\.mot\.semantic: ExpertConfig\.mlp is -4"),
        ("mot.norm_eps", 0.0, r"config\.mot: MoTConfig\.norm_eps is 0\.0"),
        ("vocab_size", 10**12, r"config: VLAConfig\.vocab_size is 1000000000000"),
        ("chunk", 0, r"config: VLAConfig\.chunk is 0"),
        ("time.buckets", 0, r"config\.time: TimeConfig\.buckets is 0"),
        ("time.max_period", -1, r"config\.time: TimeConfig\.max_period is -1"),
        ("prompt.template", ["{views}", "{state}"], r"config\.prompt: .*\{instruction\} 0 times"),
    ],
)
def test_sizes_that_make_no_network_are_refused(path: str, value: Any, sentence: str) -> None:
    """Before anything is built, also where the numbers would fill the memory."""
    with pytest.raises(ConfigError, match=sentence):
        from_dict(VLAConfig, changed(path, value))


@pytest.mark.parametrize("value", [None, [], "tiny", 3])
def test_a_config_is_an_object(value: Any) -> None:
    """Any other JSON value is refused at the top."""
    with pytest.raises(ConfigError, match=r"config: expected an object, found"):
        from_dict(VLAConfig, value)


def test_whole_numbers_are_floats_where_floats_are_asked() -> None:
    """JSON writers drop the point of 1000000.0."""
    assert from_dict(VLAConfig, changed("mot.rope_theta", 10000)).mot.rope_theta == 10000.0


def test_optional_values_may_be_null() -> None:
    """No layer scale and no time buckets are legal."""
    assert from_dict(VLAConfig, changed("vision.layer_scale", None)).vision.layer_scale is None
    assert from_dict(VLAConfig, changed("time.buckets", None)).time.buckets is None


def test_tokens_count_patches_after_the_shuffle() -> None:
    """(96 / 16 / 2)² = 9; the class token is no view token."""
    config = VisionConfig(96, 16, hidden=8, layers=1, heads=2, mlp=8)
    assert config.tokens == 9
    assert replace(config, class_token=True, pixel_shuffle=1).tokens == 36


def test_a_prompt_has_every_field_once() -> None:
    """Twice the same field is refused as well as none."""
    with pytest.raises(ConfigError, match=r"\{state\} 2 times"):
        PromptConfig(("{views}", "{state}", "{state}", "{instruction}"))


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("mot.semantic.adaptive", True, "flow time reaches the action expert alone"),
        ("mot.action.adaptive", True, "action_encoder is 'mixed' and mot.action.adaptive is True"),
        ("action_encoder", "plain", "action_encoder is 'plain' and mot.action.adaptive is False"),
        ("mot.cross_every", 2, "cross_every goes with qk_norm = false"),
        ("mot.cross_every", -1, "cross_every is -1, expected 1 to 2"),
        ("time.min_period", 0.0, "TimeConfig.min_period is 0.0, expected more than 0"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(path: str, value: Any, sentence: str) -> None:
    """Time that reaches nothing or enters twice, and layers that no kernel has."""
    with pytest.raises(ConfigError, match=sentence):
        from_dict(VLAConfig, changed(path, value))


@pytest.mark.parametrize("name", ["tiny-pi05", "tiny-smolvla"])
def test_an_expert_without_prefix_tokens_owns_no_state(name: str) -> None:
    """A state row among the prefix would have no flow time and no keys where layers cross."""
    with pytest.raises(ConfigError, match=r"state is 'action'.*use 'semantic' or 'words'"):
        replace(preset(name), state="action")
