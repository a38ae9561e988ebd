"""``vlakern collect`` from its options to its report."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlakern.cli.collect import Args, run
from vlakern.data.lerobot import LeRobotDataset
from vlakern.errors import ConfigError, DatasetError, InputError


def test_collect(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A dataset, a table for people and a report for programs; an existing set is refused."""
    args = Args(
        out=tmp_path / "set",
        tasks="reach-v3",
        episodes=2,
        workers=1,
        image_size=32,
        json=tmp_path / "report.json",
    )
    assert run(args) == 0
    dataset = LeRobotDataset(tmp_path / "set")
    assert dataset.num_episodes == 2
    assert "reach-v3" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["schema"] == 1
    assert report["config"]["tasks"] == "reach-v3"
    (row,) = report["tasks"]
    assert row["task"] == "reach-v3"
    assert row["episodes"] == 2
    assert row["attempts"] >= 2
    assert row["mean_length"] == dataset.num_frames / 2
    with pytest.raises(DatasetError, match="exists"):
        run(args)


def test_bad_words(tmp_path: Path):
    """An unknown task is refused before anything is made."""
    with pytest.raises(InputError, match="fly-v3"):
        run(Args(out=tmp_path / "set", tasks="fly-v3"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arms": "Panda"}, "--arms is for robosuite"),
        ({"views": "left"}, "--views is for robosuite"),
        ({"env": "robosuite", "arms": "Panda,Jaco"}, "arm 'Jaco' is not known; use one of Panda"),
        ({"env": "robosuite", "tasks": "mw5"}, "task 'mw5' is not known; use one of Lift, Stack"),
        ({"env": "robosuite", "episodes": 0}, "episodes is 0"),
    ],
)
def test_words_of_another_simulator(tmp_path: Path, options: dict[str, Any], words: str):
    """Refused before anything is made, and without the simulator."""
    with pytest.raises((ConfigError, InputError), match=words):
        run(Args(out=tmp_path / "set", **options))
    assert list(tmp_path.iterdir()) == []
