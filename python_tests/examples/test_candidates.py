"""The example of several candidates runs and says what it found."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "candidates.py"


def test_it_names_the_most_typical_candidate(capsys: pytest.CaptureFixture[str]) -> None:
    """One of the eight, with the spread at both ends of the chunk and both times."""
    found = runpy.run_path(str(EXAMPLE))
    printed = capsys.readouterr().out
    assert found["actions"].shape == (8, 16, 4)
    assert f"most typical: candidate {found['typical']}" in printed
    assert printed.count("spread") == 2
