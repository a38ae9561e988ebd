"""``vlakern blind``: each step by the command line, and one sentence for each that cannot be."""

import json
import re
from pathlib import Path

import pytest

from vlakern.blind.store import Store
from vlakern.cli import main

STUDY = """
title = "Two arms"
group_size = 2
trials = 10
[[models]]
name = "first"
policy = "one"
[[models]]
name = "second"
policy = "two"
[[tasks]]
name = "reach"
criterion = "there"
conditions = ["left", "right"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A study of two policies of a byte each."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path / "study.toml"


def test_plan_says_what_so_many_trials_show(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is locked: counts, hours, and the gap that ten trials can see."""
    out = tmp_path / "plan.json"
    assert main(["blind", "plan", str(file), "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "20 trials" in said
    assert re.search(r"10 +│ +(5|6)\d points", said)
    found = json.loads(out.read_text())
    assert found["groups"] == [2]
    gap = next(row["gap"] for row in found["power"] if row["n"] == 10)
    assert 0.55 < gap < 0.65  # facts of the literature: about 60 points


def test_from_lock_to_names(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lock, status, verify, backup, two steps of unblinding, and a report that needs results."""
    folder = str(tmp_path / "s")
    assert main(["blind", "lock", str(file), folder]) == 0
    said = capsys.readouterr().out
    commitment = re.search(r"commitment ([0-9a-f]{64})", said)
    assert commitment is not None
    assert len(re.findall(r"^  (operator|judge-1|analyst) +\S{20,}$", said, re.MULTILINE)) == 3
    assert main(["blind", "tokens", folder]) == 0
    assert main(["blind", "status", folder]) == 0
    assert "20 trials are not run" in capsys.readouterr().out
    assert main(["blind", "verify", folder]) == 0
    assert "1 entries in both copies" in capsys.readouterr().out
    assert main(["blind", "backup", folder, str(tmp_path / "copy")]) == 0
    with Store(tmp_path / "s/record"):  # as while it is served
        assert main(["blind", "export", folder, "--csv", str(tmp_path / "trials.csv")]) == 0
    assert "0 trials, without names" in capsys.readouterr().out
    assert (tmp_path / "trials.csv").read_text().startswith("code,order,group,task,")
    assert main(["blind", "look", folder]) == 1
    assert 'design = "sequential"' in capsys.readouterr().err
    assert main(["blind", "verify", folder, "--head", "0" * 16]) == 1
    assert "cut off" in capsys.readouterr().err
    assert main(["blind", "unblind", folder]) == 1
    assert "the study is not closed" in capsys.readouterr().err
    with Store(tmp_path / "s/record") as store:
        data = {"incomplete": "enough", "missing": []}
        store.append("end", "analyst", "closed", data)
    assert main(["blind", "unblind", folder]) == 0
    assert main(["blind", "report", folder, "--out", str(tmp_path / "r")]) == 1
    assert "not unblinded" in capsys.readouterr().err
    assert main(["blind", "unblind", folder, "--commitment", "0" * 64]) == 1
    assert main(["blind", "unblind", folder, "--commitment", commitment[1]]) == 0
    capsys.readouterr()
    assert main(["blind", "report", folder, "--out", str(tmp_path / "r")]) == 1
    assert "result" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["plan", "lost.toml"], "lost.toml is missing"),
        (["status", "nowhere"], "`vlakern blind lock` makes one"),
        (["demo", "--trials", "0"], "trials is 0"),
        (["serve", "nowhere"], "is missing"),
        (["serve", "nowhere", "--web-port", "70000"], "web_port is 70000"),
    ],
)
def test_a_step_that_cannot_be_says_so(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr and exit code 1."""
    assert main(["blind", *words]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_a_changed_video_is_found(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Verify names the trial."""
    folder = tmp_path / "s"
    assert main(["blind", "lock", str(file), str(folder)]) == 0
    code = json.loads((folder / "plan.json").read_text())["plan"]["queue"][0]["code"]
    (folder / "videos/clip.mp4").write_bytes(b"clip")
    with Store(folder / "record") as store:
        store.append("s", "operator", "started", {"code": code})
        data = {"code": code, "video": "clip.mp4", "sha256": "0" * 64, "requests": 1, "late": 0}
        store.append("e", "operator", "ended", data)
    capsys.readouterr()
    assert main(["blind", "verify", str(folder)]) == 1
    assert f"of trial {code} was changed" in capsys.readouterr().err
