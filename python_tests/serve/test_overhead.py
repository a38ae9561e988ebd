"""What the way to a server and back takes is measured beside a call in this process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vlakern.serve.overhead import overhead


def test_both_ways_are_timed() -> None:
    """A bound that only a broken way passes; the real figure wants a machine of its own."""
    ways = ("websocket", "shared") if sys.platform == "linux" else ("websocket",)
    found = overhead(ways, calls=100)
    assert list(found) == list(ways)
    for one in found.values():
        assert one["request_bytes"] == 3 * 224 * 224 * 3
        assert 0.0 < one["p50_ms"] <= one["p95_ms"] <= one["p99_ms"] <= one["max_ms"]
        assert one["p50_ms"] < 20.0


def test_the_benchmark_prints_a_row_per_way(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "serve" / "bench_serve.py"
    words = ["--views", "1", "--side", "32", "--calls", "20", "--ways", "websocket"]
    kept = tmp_path / "rows.json"
    done = subprocess.run(
        [sys.executable, str(script), *words, "--json", str(kept)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "websocket" in done.stdout
    assert json.loads(kept.read_text())["overhead"]["websocket"]["request_bytes"] == 32 * 32 * 3


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_the_allocator_keeps_what_it_has() -> None:
    """A message's buffer is not mapped anew each time: 1 MB would be 256 page faults."""
    code = (
        "import resource, sys\n"
        "from vlakern.serve._heap import keep_memory\n"
        "kept = keep_memory() if sys.argv[1] == 'kept' else True\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "hold = [b'x' * (1 << 20) for _ in range(3)]; del hold\n"
        "before = faults()\n"
        "for _ in range(100): bytearray(1 << 20)[::4096]; b'x' * (1 << 20)\n"
        "print(kept, (faults() - before) // 100)"
    )

    def run(kind: str) -> list[str]:
        words = [sys.executable, "-c", code, kind]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()

    assert run("kept")[0] == "True"
    assert int(run("kept")[1]) < 20
