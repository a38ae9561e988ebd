"""The benchmarks of the data room run and say who is how fast."""

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks/data"


def test_pictures():
    """Every format is written, checked and timed."""
    small = ["--episodes", "2", "--frames", "6", "--side", "96", "--samples", "3"]
    command = [sys.executable, str(FOLDER / "bench_pictures.py"), *small]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    rows = re.findall(r"^ +(\d+) +(\d+)  (.+)$", found.stdout, re.MULTILINE)
    assert [name for _, _, name in rows] == [
        "lerobot yuv420p",
        "lerobot yuv444p",
        "robomimic",
        "rlds png",
        "rlds jpeg",
    ]
    assert all(int(median) > 0 for median, _, _ in rows)
