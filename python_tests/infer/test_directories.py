"""What a user may call a policy, and what is said where there is none."""

import os
import shutil
from pathlib import Path

import pytest

import vlakern
from vlakern.errors import CheckpointError
from vlakern.infer.directories import policy_directory, shipped_policies


def test_names_and_paths() -> None:
    """A name that ships, a path, and its text are the same directory."""
    assert "metaworld-small" in shipped_policies()
    shipped = policy_directory("metaworld-small")
    assert (shipped / "config.json").is_file()
    assert policy_directory(shipped) == policy_directory(str(shipped)) == shipped


def test_what_is_no_directory_is_named(tmp_path: Path) -> None:
    """Each with what to do; nothing is looked for anywhere else."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, said in {
        str(tmp_path / "config.json"): r"config\.json' is a file, .*name the directory that holds",
        str(tmp_path / "link"): r"link' is a link that leads nowhere",
        "lerobot/pi0_base": r"run: hf download lerobot/pi0_base --local-dir DIRECTORY",
        "hf://lerobot/pi0_base": r"run: hf download lerobot/pi0_base --local-dir DIRECTORY",
        str(tmp_path / "nothing"): r"neither a directory nor one that ships \(metaworld-small\)",
        "a/b/c": r"neither a directory nor one that ships",
        "x" * 5000: r"neither a directory nor one that ships",
        "zero\0byte": r"neither a directory nor one that ships",
        "": r"neither a directory nor one that ships",
    }.items():
        with pytest.raises(CheckpointError, match=said) as refusal:
            policy_directory(name)
        assert str(refusal.value).isprintable()
        assert len(str(refusal.value)) < 400


def test_a_policy_is_called_as_its_directory_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is named by a dot, by letters of other alphabets, or through a link."""
    directory = tmp_path / "pölicy 机器人"
    shutil.copytree(policy_directory("metaworld-small"), directory)
    assert vlakern.load(directory, device="cpu").name == directory.name
    monkeypatch.chdir(directory)
    assert vlakern.load(".", device="cpu").name == directory.name
    monkeypatch.chdir(tmp_path)
    os.symlink(directory, tmp_path / "link")
    assert vlakern.load("link", device="cpu").name == directory.name
