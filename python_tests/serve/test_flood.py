"""Malformed frames by the hundred thousand: each is refused, and nobody else notices."""

import contextlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from python_tests.serve.flood import AT_ONCE, REFUSALS, WARM, started
from python_tests.serve.fuzzing import answered
from python_tests.serve.hosted import Served, Session, serving
from python_tests.serve.wrong import HEAVY, WRONG, packed, parts
from vlakern.errors import InputError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

GROWTH, PEAK = 24 << 20, 96 << 20  # bytes: after a tenth of the frames, and above that at any time
LOG = 200_000  # bytes a minute
# The second says nothing of what it serves, nor why it refuses.
SERVERS: tuple[dict[str, Any], ...] = ({"most_connections": 8}, {"blind": 0.001})


@pytest.mark.parametrize("kind", [*WRONG, *HEAVY])
def test_what_is_called_wrong_is_wrong(kind: str) -> None:
    rng = random.Random(kind)
    answered(packed(parts(rng)))
    for _ in range(100 if kind in WRONG else 5):
        with pytest.raises(InputError) as caught:
            answered({**WRONG, **HEAVY}[kind](rng))
        assert len(str(caught.value)) < 1500


def flooded(folder: Path, count: int, slowest: float) -> None:
    """``count`` frames that two servers side by side refuse, each while a session goes on.

    A frame counts when the server has ended its connection with a goodbye that names a mistake, and
    messages once more by the server's own count. A changed message that is still right counts not.

    Args:
        slowest: 99 of 100 answers to the sessions come sooner [s].
    """
    logs = [folder / str(i) for i in range(len(SERVERS))]
    begin = time.perf_counter()
    with contextlib.ExitStack() as ends:
        for log in logs:
            log.mkdir()
        served = [
            ends.enter_context(serving(log, **config))
            for log, config in zip(logs, SERVERS, strict=True)
        ]
        sessions = [Session(f"ws://127.0.0.1:{one.port}") for one in served]
        for session in sessions:
            session.start()
        flooding = [
            started(one, -(-count // 2), 10 + i, "blind" in SERVERS[i])
            for i, one in enumerate(served)
        ]
        before = [size(one, process) for one, process in zip(served, flooding, strict=True)]
        total = sum(map(ended, flooding), Counter[str]())
        for session in sessions:
            session.ending.set()
            session.join()
            assert session.error is None, session.error
        after = [(one.resident(), one.descriptors()) for one in served]
        peaks = [one.peak() - then for one, (then, _) in zip(served, before, strict=True)]
    took = time.perf_counter() - begin
    refused = {code: total[str(code)] for code in REFUSALS}
    waits = np.concatenate([session.took for session in sessions]) * 1e3
    sizes = [(log / "log").stat().st_size for log in logs]
    grown = [now - then for (now, _), (then, _) in zip(after, before, strict=True)]
    print(
        f"{sum(refused.values())} malformed frames refused in {took:.0f} s ({refused}), of which"
        f" {total['distinct']} distinct; {total['answered']} were right after all,"
        f" {total['full']} found no place, {total['gone']} got no goodbye;"
        f" {len(waits)} answers meanwhile, p50 {np.percentile(waits, 50):.1f}"
        f" p99 {np.percentile(waits, 99):.1f} max {waits.max():.1f} ms;"
        f" memory {grown}, peak {peaks}, logs {sizes} bytes; {ways(total)}"
    )
    assert sum(refused.values()) >= count
    assert min(refused.values()) > count // 100
    assert total["distinct"] > 0.9 * count
    assert sum(one.counted["refused"] for one in served) >= refused[1011]
    assert sum(one.counted["failed"] for one in served) == 0
    # A goodbye that nobody takes for two seconds, on a machine that stands still, is given up.
    assert total["gone"] <= 4 * AT_ONCE
    assert total["full"] < 20 + count // 100
    assert max(grown) < GROWTH
    assert max(peaks) < PEAK
    assert max(now - then for (_, now), (_, then) in zip(after, before, strict=True)) < 16
    assert max(sizes) < LOG * (1 + took / 60)
    assert all(len(session.took) > 0.2 * took for session in sessions)
    assert np.percentile(waits, 99) < slowest * 1e3


def ways(total: Counter[str]) -> str:
    found = {name.removeprefix("made "): n for name, n in total.items() if name.startswith("made ")}
    return ", ".join(f"{name} {n}" for name, n in sorted(found.items()))


def size(served: Served, flooding: "subprocess.Popen[str]") -> tuple[int, int]:
    """Memory [bytes] and descriptors when a tenth of the frames is through."""
    assert flooding.stdout is not None
    assert flooding.stdout.readline() == WARM + "\n"
    return served.resident(), served.descriptors()


def ended(flooding: "subprocess.Popen[str]") -> Counter[str]:
    """What came of its frames."""
    found, _ = flooding.communicate(timeout=900)
    assert flooding.returncode == 0
    counts = json.loads(found)
    total = Counter[str](counts.pop("refused"))
    total.update({f"made {name}": n for name, n in counts.pop("made").items()})
    total.update(counts)
    return total


def test_malformed_frames_are_refused(tmp_path: Path) -> None:
    flooded(tmp_path, 1_000, slowest=2.0)


@pytest.mark.ci
def test_200_000_malformed_frames_are_refused(tmp_path: Path) -> None:
    flooded(tmp_path, 200_000, slowest=0.5)
