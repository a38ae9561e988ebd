"""The statistics of a policy directory say whose they are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vlakern.errors import ConfigError
from vlakern.models import VLA, preset
from vlakern.models.tokenizer import fit_tokenizer
from vlakern.models.weights import PolicyFiles, Processing, read, write
from vlakern.space import Slot, SlotMap, VectorStats
from vlakern.space.embodiment import Embodiment, Field

STATE = SlotMap("arm", 7, (Slot("joints", "rad", 0, 7, kind="joint"),))
ACTION = SlotMap("arm", 5, (Slot("joints", "rad", 0, 5, kind="joint"),))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The smallest policy, its statistics unnamed in memory."""
    torch.manual_seed(0)
    fields = (Field("joints", (0, 7)),), (Field("joints", (0, 5)),)
    arm = Embodiment("arm", "arm", 20.0, ("front",), 7, 5, *fields)
    ones, zeros = (1.0,), (0.0,)

    def stats(width: int) -> VectorStats:
        low = (-1.0,) * width
        return VectorStats(zeros * width, ones * width, low, ones * width, low, ones * width)

    parts = arm, STATE, ACTION, Processing(execute=2), stats(7), stats(5)
    write(tmp_path / "policy", PolicyFiles(VLA(preset("tiny")), *parts, fit_tokenizer(["a"], 300)))
    return tmp_path / "policy"


def test_written_statistics_are_named_and_say_their_frame(directory: Path) -> None:
    """A reader can tell what they are of."""
    stats = json.loads((directory / "stats.json").read_text())
    assert stats["frame"] == "native"
    assert stats["state"]["names"] == [f"joints.{i}" for i in range(7)]
    assert read(directory).action_stats.names == ACTION.names()


def unnamed(stats: dict[str, Any]) -> None:
    del stats["state"]["names"]


def renamed(stats: dict[str, Any]) -> None:
    stats["action"]["names"][2] = "wrist.2"


def reframed(stats: dict[str, Any]) -> None:
    stats["frame"] = "eef_relative"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (unnamed, r"stats\.json\.state: names are missing"),
        (
            renamed,
            r"action statistics: slot 2 of the statistics is 'wrist\.2', expected 'joints\.2",
        ),
        (reframed, r"in frame 'eef_relative', config\.json says 'native'"),
    ],
)
def test_statistics_of_something_else_are_refused(
    directory: Path, change: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    """Without names, of another slot, of another frame."""
    stats = json.loads((directory / "stats.json").read_text())
    change(stats)
    (directory / "stats.json").write_text(json.dumps(stats))
    with pytest.raises(ConfigError, match=sentence):
        read(directory)
