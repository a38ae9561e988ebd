"""Back to LeRobot's files: what was read is written, and reads as what it was."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vlakern
from vlakern.errors import ConfigError
from vlakern.models.presets import preset
from vlakern.models.weights import export, families
from vlakern.models.weights.convert import distances, to_native
from vlakern.models.weights.export import kind_of, source_weights, to_lerobot
from vlakern.models.weights.families import open_policy
from vlakern.models.weights.family import native_shapes
from vlakern.models.weights.golden import distance

KINDS = ("pi0", "pi05", "smolvla")
FOLDED = ("norm.weight", "layernorm.weight", "embed_tokens", "lm_head", "modality_projection")


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str, goldens: ModuleType, tmp_path: Path) -> None:
    """LeRobot to ours to LeRobot: the bits of what is not folded, one rounding for what is."""
    source = goldens.lerobot_directory(tmp_path / kind, kind)
    first = to_native(source, tmp_path / "ours")
    to_lerobot(tmp_path / "ours", tmp_path / "theirs")
    left = load_file(source / "model.safetensors")
    right = load_file(tmp_path / "theirs" / "model.safetensors")
    tied = {name for name in left if name.endswith("embed_tokens.weight") and kind != "smolvla"}
    assert set(left) - tied == set(right)
    exact = 0
    for name, weight in right.items():
        if "gemma_expert.lm_head" in name or "vlm.lm_head" in name:
            assert not weight.any()  # dead weights; the name alone is needed
        elif any(part in name for part in FOLDED):
            torch.testing.assert_close(weight, left[name], rtol=2.0**-22, atol=2.0**-23)
        else:
            assert torch.equal(weight, left[name]), name
            exact += 1
    assert exact > 60
    again = open_policy(tmp_path / "theirs")
    assert again.family.name == first.family.name
    assert max(distances(first, again).values()) < 2.0**-22
    assert again.records.config == first.records.config
    assert again.records.processing == first.records.processing
    assert again.records.embodiment == first.records.embodiment
    for part in ("state_stats", "action_stats"):
        ours, theirs = getattr(first.records, part), getattr(again.records, part)
        assert ours.present == theirs.present
        assert ours.mean == pytest.approx(theirs.mean, rel=1e-7)
        assert ours.q99 == pytest.approx(theirs.q99, rel=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_processors_are_lerobots(kind: str, goldens: ModuleType, tmp_path: Path) -> None:
    """The same steps with the same settings as LeRobot's own files."""
    source = goldens.lerobot_directory(tmp_path / kind, kind)
    to_lerobot(source, tmp_path / "theirs")
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        ours, theirs = (
            json.loads((directory / name).read_text())["steps"]
            for directory in (tmp_path / "theirs", source)
        )
        assert [s["registry_name"] for s in ours] == [s["registry_name"] for s in theirs]
        for left, right in zip(ours, theirs, strict=True):
            for step in (left, right):  # cameras are not normalised and need not be listed
                step["config"].pop("features", None)
                step["config"].pop("max_state_dim", None)
                step["config"].pop("task_key", None)
            assert left["config"] == right["config"] | (
                {"tokenizer_name": left["config"]["tokenizer_name"]}
                if "tokenizer_name" in left["config"]
                else {}
            )


@pytest.mark.parametrize("kind", KINDS)
def test_full_size_names_are_lerobots(kind: str, goldens: ModuleType) -> None:
    """Every tensor of LeRobot's full-size network with its shape, tied words once."""
    config = preset(kind)
    with torch.device("meta"):
        shapes = {name: torch.empty(shape) for name, shape in native_shapes(config).items()}
    made = source_weights(config, shapes.__getitem__, lambda name: None)
    expected = {
        f"model.{k}": v for k, v in goldens.read_names(goldens.GOLDEN / f"{kind}_full.json").items()
    }
    expected = {
        k: v for k, v in expected.items() if not k.endswith("language_model.embed_tokens.weight")
    }
    assert {name: tuple(weight.shape) for name, weight in made.items()} == expected


@pytest.mark.parametrize("name", [*KINDS, "pi05_relative"])
def test_lerobot_acts_alike(
    name: str, goldens: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LeRobot's own classes and processors read this very export, every tensor of it and nothing
    missing, and acted as the engine does, within 1e-4 in fp32 (make_golden_export.py)."""
    kind, relative = goldens.EXPORTS[name]
    source = goldens.lerobot_directory(tmp_path / kind, kind, recent=True, relative=relative)
    assert open_policy(source).records.processing.relative == relative
    exported = tmp_path / "exported"
    to_lerobot(source, exported)
    with np.load(goldens.GOLDEN / f"export_{name}.npz", allow_pickle=False) as file:
        golden = dict(file)
    # What LeRobot read then is what is written now.
    assert goldens.contents(exported) == str(golden["read"])
    given, noise = goldens.exported_observation(kind)
    observation = vlakern.Observation(**given)
    for directory in (source, exported):
        policy = vlakern.load(directory, device="cpu", dtype="fp32")
        monkeypatch.setattr(policy, "_noise", lambda seeds: noise[None])
        chunk = policy.act(observation, seed=0).actions
        assert chunk.shape == golden["chunk"].shape
        assert distance(chunk, golden["chunk"]) < 1e-4
        assert distance(chunk[0], golden["first"]) < 1e-4


def test_relative_actions_are_exported(
    goldens: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As names of joints of which some are excluded."""
    source = goldens.lerobot_directory(tmp_path / "pi05", "pi05")
    opened = open_policy(source)
    p = replace(opened.records.processing, relative=(0, 1, 3))
    p = replace(p, prompt=replace(p.prompt, numbers="robot"), image=replace(p.image, pad=0))
    changed = replace(opened, records=replace(opened.records, processing=p))
    monkeypatch.setattr(export, "open_policy", lambda _: changed)
    to_lerobot(source, tmp_path / "theirs")
    assert families.open_policy(tmp_path / "theirs").records.processing == p


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_the_border_of_images_is_of_the_version(
    kind: str, goldens: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Black for policies that LeRobot wrote from 0.5.1 on, which the export says; what no version
    does is refused."""
    for recent, pad in ((True, 0), (False, -255)):
        source = goldens.lerobot_directory(tmp_path / f"{recent}", kind, recent=recent)
        to_lerobot(source, tmp_path / f"{recent}_theirs")
        for directory in (source, tmp_path / f"{recent}_theirs"):
            assert open_policy(directory).records.processing.image.pad == pad
    opened = open_policy(tmp_path / "True")
    p = replace(opened.records.processing, relative=(0,))
    p = replace(p, image=replace(p.image, pad=-255))
    changed = replace(opened, records=replace(opened.records, processing=p))
    monkeypatch.setattr(export, "open_policy", lambda _: changed)
    with pytest.raises(ConfigError, match=r"relative actions and image\.pad = -255"):
        to_lerobot(tmp_path / "True", tmp_path / "mixed")


def test_what_lerobot_cannot_say_is_refused(
    goldens: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another epsilon would be other actions; another network has no policy there."""
    source = goldens.lerobot_directory(tmp_path / "pi0", "pi0")
    opened = open_policy(source)
    p = replace(opened.records.processing, epsilon="openpi")
    changed = replace(opened, records=replace(opened.records, processing=p))
    monkeypatch.setattr(export, "open_policy", lambda _: changed)
    with pytest.raises(ConfigError, match="epsilon is 'openpi', LeRobot's processors only have"):
        to_lerobot(source, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
    with pytest.raises(ConfigError, match="not of the kind of pi0"):
        kind_of(preset("tiny"))
    kinds = [kind_of(preset(name)) for name in ("pi0", "pi05", "smolvla")]
    assert kinds == ["pi0", "pi05", "smolvla"]
