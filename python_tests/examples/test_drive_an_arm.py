"""The example loop runs against the simulator, and executes what it says."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import vlakern

EXAMPLE = Path(__file__).parents[2] / "examples" / "drive_an_arm.py"


class CountingArm:
    """Counts looks and commands; done after ``until`` commands."""

    def __init__(self, policy: vlakern.Policy, until: int) -> None:
        side = policy.image_size
        images = {view: np.zeros((side, side, 3), np.uint8) for view in policy.views}
        self._observation = vlakern.Observation(images, np.zeros(4, np.float32), "push the puck")
        self._until = until
        self.looks = self.commands = 0

    def observe(self) -> vlakern.Observation:
        self.looks += 1
        return self._observation

    def command(self, action: np.ndarray) -> None:
        assert action.shape == (4,)
        self.commands += 1

    def done(self) -> bool:
        return self.commands >= self._until


@pytest.mark.parametrize(("until", "limit", "commands"), [(5, 100, 5), (100, 20, 20)])
def test_the_loop_stops_when_done_or_at_the_limit(until: int, limit: int, commands: int) -> None:
    """It looks once per executed part of a chunk and never sends one command too many."""
    policy = vlakern.load("metaworld-small")
    drive = runpy.run_path(str(EXAMPLE))["drive"]
    arm = CountingArm(policy, until)
    assert drive(arm, policy, limit, seed=0) == commands
    assert arm.commands == commands
    assert arm.looks == -(-commands // policy.execute)


def test_the_example_runs_as_its_docstring_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short run in the simulator ends with one line that says how it went."""
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "drawer-open-v3", "--max-steps", "16"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out.startswith("drawer-open-v3: not done after 16 steps")
