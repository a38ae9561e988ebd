"""Every benchmark of an op starts: what it imports is there and its words are understood."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "ops"
SCRIPTS = sorted(
    path.name
    for path in FOLDER.glob("*.py")
    if path.name.startswith("bench_") or path.name == "gpu_baselines.py"
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_says_how_it_is_used(script: str) -> None:
    """``--help`` ends with exit code 0 and prints the usage."""
    command = [sys.executable, str(FOLDER / script), "--help"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("usage:")
