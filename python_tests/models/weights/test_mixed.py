"""Files of two checkpoints in one directory are refused, and the sentence names both sides."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file, save_file

from vlakern.errors import ConfigError
from vlakern.models.weights.families import open_policy
from vlakern.models.weights.mixed import STEPS, check_same_statistics, kind_of

KINDS = ("pi0", "pi05", "smolvla")
PAIRS = [(one, other) for one in KINDS for other in KINDS if one != other]
PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"


def mixed(goldens: ModuleType, folder: Path, kind: str, other: str, *files: str) -> Path:
    """A directory of one kind with files of the other."""
    directory = goldens.lerobot_directory(folder / kind, kind)
    theirs = goldens.lerobot_directory(folder / f"other {other}", other)
    for pattern in files:
        for path in theirs.glob(pattern):
            shutil.copy(path, directory)
    return directory


@pytest.mark.parametrize(("kind", "other"), PAIRS)
def test_weights_of_the_other_model(
    kind: str, other: str, goldens: ModuleType, tmp_path: Path
) -> None:
    """Whichever of the two files was not copied."""
    directory = mixed(goldens, tmp_path, kind, other, "model.safetensors")
    with pytest.raises(
        ConfigError, match=rf"config.json.type is of {kind}, but .* holds the tensors of {other};"
    ):
        open_policy(directory)


@pytest.mark.parametrize(("kind", "other"), PAIRS)
def test_processors_of_the_other_model(
    kind: str, other: str, goldens: ModuleType, tmp_path: Path
) -> None:
    """Both files, or the first alone."""
    for files in (("policy_*",), (PRE, "policy_preprocessor_*")):
        directory = mixed(goldens, tmp_path / files[0], kind, other, *files)
        with pytest.raises(ConfigError) as refusal:
            open_policy(directory)
        assert str(directory / PRE) in str(refusal.value)
        if files == ("policy_*",):
            said = f"has the step '{STEPS[other]}' of '{other}', expected '{STEPS[kind]}'"
            assert said in str(refusal.value)
            assert f"config.json.type is '{kind}'; copy all files of one" in str(refusal.value)


@pytest.mark.parametrize(("kind", "other"), PAIRS)
def test_the_post_processor_of_another_robot(
    kind: str, other: str, goldens: ModuleType, tmp_path: Path
) -> None:
    """Its statistics make the actions, and no step tells it."""
    directory = mixed(goldens, tmp_path, kind, other, POST, "policy_postprocessor_*")
    with pytest.raises(ConfigError, match=r"post.*expected the same; copy (both|all) files of one"):
        open_policy(directory)


def test_the_same_robot_passes(goldens: ModuleType, tmp_path: Path) -> None:
    """Files of two checkpoints that agree in everything are no reason to refuse."""
    directory = goldens.lerobot_directory(tmp_path / "pi0", "pi0", recent=True)
    older = goldens.lerobot_directory(tmp_path / "older", "pi0")
    shutil.copy(older / POST, directory)
    open_policy(directory)


@pytest.mark.parametrize("part", ["observation.state", "action"])
@pytest.mark.parametrize("width", [5, 9])
def test_statistics_of_another_width(
    part: str, width: int, goldens: ModuleType, tmp_path: Path
) -> None:
    """Too many numbers would be cut in silence, too few were called a slot that is missing."""
    directory = goldens.lerobot_directory(tmp_path / "smolvla", "smolvla")
    for path in directory.glob("policy_*.safetensors"):
        tensors = load_file(path)
        for name, values in tensors.items():
            if name.startswith(f"{part}."):
                tensors[name] = values.repeat(2)[:width].contiguous()
        save_file(tensors, path)
    config = json.loads((directory / "config.json").read_text())
    config["max_state_dim"] = config["max_action_dim"] = 32
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError) as refusal:
        open_policy(directory)
    said = str(refusal.value)
    if part == "action" and width == 9:  # more than the network's vector
        assert "has 9 numbers, expected at most the 7" in said
    else:
        assert f"{part} has statistics of {width} numbers, expected 6, which" in said
    assert ".safetensors" in said


def test_kinds_by_their_names(goldens: ModuleType) -> None:
    """Of every network whose names are stored; a prefix changes nothing."""
    names = {"pi0": "pi0", "pi05": "pi05", "smolvla": "smolvla"}
    names |= {"beingh": "being_h05", "lerobot_being_h05": "being_h05"}
    for file, kind in names.items():
        found = goldens.read_names(goldens.GOLDEN / f"{file}_names.json")
        assert kind_of(found) == kind
        assert kind_of(f"_orig_mod.model.{name}" for name in found) == kind
    assert kind_of(["action_head.weight"]) == ""


def test_what_is_not_finite_is_left_to_its_reader() -> None:
    """Statistics of numbers that nobody measured are the same nothing in both files."""
    nan = float("nan")
    check_same_statistics({"mean": [nan, 1.0]}, {"mean": [nan, 1.0 + 1e-9]}, ("a", "b"))
    with pytest.raises(ConfigError, match=r"action.mean has .* 2 numbers|action.mean .* 1 numbers"):
        check_same_statistics({"mean": [1.0]}, {"mean": [1.0, 2.0]}, ("a", "b"))
    with pytest.raises(ConfigError, match=r"^a and b .* action.mean\[1\] is 1 in the one and 2 in"):
        check_same_statistics({"mean": [0.0, 1.0]}, {"mean": [0.0, 2.0]}, ("a", "b"))
