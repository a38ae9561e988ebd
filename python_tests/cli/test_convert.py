"""``vlakern convert``: what it writes and what its report says."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from vlakern.cli import convert, main

WEIGHTS = Path(__file__).parents[1] / "models" / "weights"


@pytest.fixture(scope="module")
def goldens() -> ModuleType:
    """The golden files of other implementations, see ``models/weights/goldens.py``."""
    if "goldens" not in sys.modules:
        spec = importlib.util.spec_from_file_location("goldens", WEIGHTS / "goldens.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules["goldens"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["goldens"])
    return sys.modules["goldens"]


@pytest.mark.parametrize("kind", ["pi0", "pi05", "smolvla"])
def test_report(
    kind: str, goldens: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same bits, the same actions, and every golden stage within 1e-4; then back again."""
    source, ours, theirs = tmp_path / kind, tmp_path / "ours", tmp_path / "theirs"
    goldens.lerobot_directory(source, kind)
    golden, report = goldens.GOLDEN / f"{kind}.npz", tmp_path / "report.json"
    words = ["convert", str(source), str(ours), "--golden", str(golden), "--json", str(report)]
    assert main(words) == 0
    found = json.loads(report.read_text())
    assert found["same"]
    assert found["identical"] == found["tensors"]
    assert found["actions_differ_by"] == 0.0
    assert max(found["golden"].values()) < 1e-5
    assert len(found["skipped"]) == (1 if kind == "smolvla" else 2)
    streams = capsys.readouterr()
    assert "golden velocity" in streams.out
    assert "differs" not in streams.out

    assert main(["convert", str(ours), str(theirs), "--export", "lerobot"]) == 0
    assert json.loads((theirs / "config.json").read_text())["type"] == kind
    assert "not the same" not in capsys.readouterr().err


def test_other_numbers_are_reported(
    goldens: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Golden numbers of another network: the stages that differ, and exit code 1."""
    source = goldens.lerobot_directory(tmp_path / "pi0", "pi0")
    weights = load_file(source / "model.safetensors")
    weights["model.action_out_proj.bias"] += 0.1
    save_file(weights, source / "model.safetensors")
    words = ["--golden", str(goldens.GOLDEN / "pi0.npz"), "--no-actions"]
    assert main(["convert", str(source), str(tmp_path / "ours"), *words]) == 1
    streams = capsys.readouterr()
    assert "is not the same as" in streams.err
    lines = {
        line.split("golden ")[1].split()[0]: line
        for line in streams.out.splitlines()
        if "golden " in line
    }
    assert "differs" in lines["velocity"]
    assert "ok" in lines["keys"]


def test_actions_that_differ_are_reported(
    goldens: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both directories act on the same observation and noise; what differs is exit code 1."""
    source = goldens.lerobot_directory(tmp_path / "pi0", "pi0")
    monkeypatch.setattr(convert, "_actions", lambda args: float(np.float32(1e-3)))
    assert main(["convert", str(source), str(tmp_path / "ours")]) == 1


def test_words_that_cannot_be(
    goldens: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A target that is there, a source that is none, a report that cannot be written."""
    source = goldens.lerobot_directory(tmp_path / "pi0", "pi0")
    for words, message in (
        ([str(source), str(source)], "exists; name a directory that is not there yet"),
        ([str(tmp_path / "gone"), str(tmp_path / "new")], "neither a directory nor one that ships"),
        ([str(source / "config.json"), str(tmp_path / "new")], "name the directory that holds it"),
        (["lerobot/pi0_base", str(tmp_path / "new")], "run: hf download lerobot/pi0_base"),
        ([str(source), str(source / "config.json" / "new")], "cannot write"),
        ([str(source), str(tmp_path / "new"), "--json", str(tmp_path)], "is a directory"),
    ):
        assert main(["convert", *words]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
