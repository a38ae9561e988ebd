"""``vlakern data inspect``: a dataset or a mixture, for people, for programs and as a picture."""

import json
from pathlib import Path

import numpy as np
import pytest

from vlakern.cli import main
from vlakern.data.lerobot import LeRobotWriter


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of a known robot, and a mixture that names it twice."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    with LeRobotWriter(
        root / "sawyer",
        fps=20,
        views={"left": (28, 28)},
        state_names=list("xyzg"),
        action_names=list("xyzg"),
        robot_type="metaworld_sawyer",
    ) as writer:
        for length in (20, 24):
            frames = rng.integers(0, 256, (length, 28, 28, 3), dtype="u1")
            vectors = rng.normal(size=(2, length, 4)).astype(np.float32)
            writer.add_episode({"left": frames}, vectors[0], vectors[1], "push")
    entry = '\n[[datasets]]\nname = "{}"\npath = "sawyer"\ngroup = "{}"\nstride = {}'
    text = 'name = "two"' + entry.format("slow", "x", 1) + entry.format("fast", "y", 2)
    (root / "two.toml").write_text(text)
    return root


def run(*words: object) -> int:
    return main(["data", "inspect", *map(str, words)])


def test_a_mixture_is_shown_written_and_drawn(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Frames, shares, slots and ranges; the JSON has them as numbers."""
    report, plot = tmp_path / "report.json", tmp_path / "plot.png"
    words = ("--frame", "world_relative", "--json", report, "--plot", plot)
    assert run(root / "two.toml", *words) == 0
    said = capsys.readouterr().out
    for text in ("slow", "fast", "66.7%", "33.3%", "44", "22", "right_eef_position", "right_grip"):
        assert text in said
    found = json.loads(report.read_text())
    rows = found["data"]["rows"]
    assert [(r["name"], r["raw"], r["effective"]) for r in rows] == [
        ("slow", 44, 44),
        ("fast", 44, 22),
    ]
    assert found["config"]["frame"] == "world_relative"
    assert found["schema"] == 1
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_dataset_on_its_own(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a robot and a stride of the command line."""
    words = ("--embodiment", "metaworld_sawyer", "--stride", "4", "--frame", "world_delta")
    assert run(root / "sawyer", *words) == 0
    said = capsys.readouterr().out
    assert "metaworld" in said
    assert "11" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("gone.toml",), "gone.toml is missing; expected a TOML file"),
        (("gone",), "dataset 'gone'"),
        (("two.toml", "--stride", "2"), "--embodiment and --stride are for one dataset"),
        (("two.toml", "--root", "elsewhere"), "dataset 'slow'"),
        (("sawyer", "--root", "elsewhere"), "--root is for mixtures"),
        (("sawyer", "--chunk", "0"), "--chunk is 0, expected 1"),
        (("sawyer", "--frame", "eef_delta"), "frame eef_delta needs slot 'right_eef_rotation'"),
    ],
)
def test_what_cannot_be_inspected_is_one_sentence(
    root: Path, words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And exit code 1."""
    assert run(root / words[0], *words[1:]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


def test_wrong_words_exit_with_2() -> None:
    """An unknown verb of data, or no path."""
    for words in (["data", "improve", "x"], ["data", "inspect"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
