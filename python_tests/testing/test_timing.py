"""Interleaved timing, on a clock that the test winds."""

import pytest
import torch

from vlakern.testing.timing import Timing, clock_of, copy_bandwidth, interleave


def test_interleaves_and_takes_medians() -> None:
    """Contenders take turns, the first run of each is not counted, nor is what comes before."""
    now, order = [0.0], []

    def spend(name: str, seconds: float) -> None:
        order.append(name)
        now[0] += seconds * (100 if len(order) <= 2 else 1)

    found = interleave(
        {"a": lambda: spend("a", 1.0), "b": lambda: spend("b", 3.0)},
        repeats=2,
        before_each=lambda: now.__setitem__(0, now[0] + 50.0),
        clock=lambda: now[0],
    )
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert found["a"].seconds == (1.0, 1.0)
    assert found["b"].median == 3.0


def test_timing() -> None:
    """Median and best of sorted times."""
    assert Timing((1.0, 2.0, 9.0)).median == 2.0
    assert Timing((1.0, 2.0, 9.0)).best == 1.0


def test_copy_bandwidth() -> None:
    """A copy counts what it reads and what it writes."""
    assert 1e8 < copy_bandwidth(size=1 << 22, passes=3) < 1e13


def test_clock_goes_forward() -> None:
    """Two readings are in order."""
    clock = clock_of("cpu")
    assert clock() <= clock()


def test_a_gpus_clock_waits_for_that_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which need not be torch's current one."""
    waited: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))
    clock_of("cuda:1")()
    assert waited == ["cuda:1"]
