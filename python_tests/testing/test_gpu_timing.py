"""Times in graphs, on a GPU that is a clock: what a call costs and whether it can be captured."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from vlakern.testing import gpu_timing, interleave_on
from vlakern.testing.gpu_timing import GRAPH, STREAM, TURNS, WALL, per_call


class Clock:
    """A GPU whose work is seconds: run now, or noted in the graph that is being captured."""

    def __init__(self) -> None:
        self.now, self.graph, self.flushes = 0.0, None, 0

    def work(self, seconds: float) -> None:
        if self.graph is None:
            self.now += seconds
        else:
            self.graph.seconds += seconds

    def flush(self) -> None:
        self.flushes += 1
        self.work(50e-6)


class Stream:
    def wait_stream(self, other: "Stream") -> None:
        pass


def install(patch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    class Graph:
        seconds = 0.0

        def replay(self) -> None:
            clock.now += self.seconds + 8e-6

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock.now

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: "Event") -> float:
            return (end.at - self.at) * 1e3

    @contextmanager
    def capture(graph: Any) -> Iterator[None]:
        clock.graph = graph
        try:
            yield
        finally:
            clock.graph = None

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        yield

    fakes: dict[str, Any] = {
        "CUDAGraph": Graph,
        "Event": Event,
        "Stream": Stream,
        "current_stream": Stream,
        "graph": capture,
        "stream": on,
        "synchronize": lambda: None,
    }
    for name, fake in fakes.items():
        patch.setattr(torch.cuda, name, fake)
    patch.setattr(gpu_timing, "flusher", lambda device: clock.flush)
    return clock


def test_a_call_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the flush nor the graph's own launch is in a call's time."""
    clock = install(monkeypatch)
    found = interleave_on("cuda", {"a": lambda: clock.work(3e-6), "b": lambda: clock.work(7e-6)}, 5)
    assert [found[name].median for name in "ab"] == pytest.approx([3e-6, 7e-6])
    assert {one.clock for one in found.values()} == {GRAPH}
    assert len(found["a"].seconds) == 5
    assert clock.flushes == 3 * (gpu_timing.WARM_UP + TURNS)


def test_a_call_that_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is timed alone, after a flush, and the row can say so."""
    clock = install(monkeypatch)

    def waits() -> None:
        if clock.graph is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        clock.work(4e-6)

    found = interleave_on("cuda", {"waits": waits, "b": lambda: clock.work(7e-6)}, 3)
    assert found["waits"].median == pytest.approx(4e-6)
    assert (found["waits"].clock, found["b"].clock) == (STREAM, GRAPH)
    captured = 3 * gpu_timing.WARM_UP + 2 * TURNS + 1  # the attempt ended at its first turn
    assert clock.flushes == captured + 3


def test_work_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A contender that works on the CPU is timed by the wall clock and never captured."""
    clock = install(monkeypatch)
    calls: list[object] = []
    found = interleave_on("cuda", {"pillow": lambda: calls.append(clock.graph)}, 2, {"pillow"})
    assert found["pillow"].clock == WALL
    assert calls
    assert set(calls) == {None}


def test_on_the_cpu() -> None:
    """There it is ``interleave``."""
    assert interleave_on("cpu", {"a": lambda: None}, 4)["a"].clock == WALL


def test_noise_gives_no_negative_time() -> None:
    """A difference that noise has eaten is not a time below nothing."""
    assert per_call(1.0, 1.1, 10) == pytest.approx(1e-8)
    assert per_call(2.0, 1.0, 10) == pytest.approx(0.1)
