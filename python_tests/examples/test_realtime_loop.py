"""The example of the real-time loop runs as its docstring says, and refuses what is too slow."""

import runpy
import sys
from pathlib import Path

import pytest

from vlakern.errors import ConfigError
from vlakern.ops import _native

EXAMPLE = Path(__file__).parents[2] / "examples" / "realtime_loop.py"
pytestmark = pytest.mark.skipif(_native.missing() is not None, reason="no native module")


def test_the_example_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second of it, with chunks that join."""
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--seconds", "1", "--latency", "0.02"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out
    assert said.startswith("ended: ")
    assert "latency p95" in said


def test_inference_that_is_too_slow_is_refused() -> None:
    """1 s are 20 of the chunk's 24 actions."""
    with pytest.raises(ConfigError, match="d <= s <= H - d"):
        runpy.run_path(str(EXAMPLE))["drive"](1.0, 1.0, 10, True)
