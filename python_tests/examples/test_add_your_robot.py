"""The example declares a robot in a few lines and shows what a policy would see of it."""

import runpy
import sys
from pathlib import Path

import pytest

from vlakern.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLE, ROBOT = FOLDER / "add_your_robot.py", FOLDER / "my_robot.toml"


def run(robot: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *([str(robot)] if robot else [])])
    runpy.run_path(str(EXAMPLE), run_name="__main__")


def test_the_example_prints_the_filled_slots_and_its_round_trip(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hand that looks down moves back along its own z when it rises; 1 is an open gripper."""
    run(ROBOT, monkeypatch)
    *slots, last = capsys.readouterr().out.splitlines()
    rows = {name: [float(v) for v in values] for name, *values in map(str.split, slots)}
    still = [0.0] * 4
    assert rows == {
        "right_eef_position.0": still,
        "right_eef_position.1": still,
        "right_eef_position.2": [-0.02, -0.04, -0.06, -0.08],
        **{f"right_eef_rotation.{i}": still for i in range(3)},
        "right_gripper": [1.0, 1.0, 0.0, 0.0],
    }
    assert float(last.removeprefix("round trip: ")) < 1e-6


def test_without_a_file_it_takes_the_one_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From whatever folder it is run."""
    run(ROBOT, monkeypatch)
    expected = capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    run(None, monkeypatch)
    assert capsys.readouterr().out == expected


def test_a_slip_in_the_file_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the file, the part and the slot."""
    path = tmp_path / "mine.toml"
    path.write_text(ROBOT.read_text().replace("right_gripper", "right_griper", 1))
    with pytest.raises(ConfigError, match=r"mine\.toml: state: slot 'right_griper' is not in"):
        run(path, monkeypatch)


def test_adding_a_robot_takes_under_sixty_lines() -> None:
    """Of TOML and Python together."""
    assert sum(len(path.read_text().splitlines()) for path in (EXAMPLE, ROBOT)) < 60
