"""Programs that are recorded and replayed, and what happens when that fails."""

import gc
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlakern.infer import graph
from vlakern.infer.graph import CudaRecorder, Graphs


class Plain:
    """Records by keeping the calls; ``fails`` says what raises."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.warmed, self.replayed = fails, 0, 0

    def warm_up(self, program: Any) -> None:
        self.warmed += 1

    def record(self, program: Any) -> Any:
        if self.fails == "record":
            raise RuntimeError("a record that fails")
        return lambda: self._replay(program)

    def _replay(self, program: Any) -> None:
        if self.fails == "replay":
            raise RuntimeError("a replay that fails")
        self.replayed += 1
        graph.run_all(program)


def test_without_a_recorder_programs_run_call_by_call() -> None:
    """In their order, without a warning."""
    said: list[int] = []
    graphs = Graphs(None)
    graphs.add("a", [lambda: said.append(1), lambda: said.append(2)])
    assert said == []
    graphs.run("a")
    assert said == [1, 2]
    assert graphs.why_eager == "no recorder was given"
    assert "a" in graphs
    assert "b" not in graphs


def test_a_recording_is_replayed() -> None:
    """It was warmed up once; a program that there is not is an error, not nothing."""
    said: list[int] = []
    recorder = Plain()
    graphs = Graphs(recorder)
    graphs.add("a", [lambda: said.append(1)])
    graphs.run("a")
    graphs.run("a")
    assert (said, recorder.warmed, graphs.why_eager) == ([1, 1], 1, None)
    assert graphs.recorded == 1
    assert graphs.recording_s > 0
    with pytest.raises(KeyError):
        graphs.run("b")


@pytest.mark.parametrize("where", ["record", "replay"])
def test_one_failure_ends_all_recordings(where: str) -> None:
    """The call that meets it is done all the same; those after it try nothing and say nothing."""
    said: list[str] = []
    recorder = Plain()
    graphs = Graphs(recorder)
    graphs.add("a", [lambda: said.append("a")])
    recorder.fails = where
    fail = {"record": lambda: graphs.add("b", []), "replay": lambda: graphs.run("a")}[where]
    with pytest.warns(RuntimeWarning, match=f"launched one by one.*: .*a {where} that fails"):
        fail()
    recorder.fails = ""
    graphs.add("c", [lambda: said.append("c")])
    said.clear()
    graphs.run("a")
    graphs.run("c")
    assert said == ["a", "c"]
    assert (recorder.replayed, graphs.recorded) == (0, 1)
    assert f"a {where} that fails" in str(graphs.why_eager)
    assert recorder.warmed == (2 if where == "record" else 1)


@pytest.mark.parametrize("fails", [False, True])
def test_how_cuda_graphs_are_asked_for(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Warm-up on a side stream that waits and is waited for; a capture there, in one pool.

    Where torch cannot end a capture it leaves the side stream current; the recorder does not.
    """
    said: list[str] = []
    current: list[str] = ["main"]

    def stream(name: str) -> Any:
        return SimpleNamespace(wait_stream=lambda other: said.append(f"{name} waits {other.name}"),
                               name=name)  # fmt: skip

    main, side = stream("main"), stream("side")

    @contextmanager
    def on(name: str) -> Any:
        said.append(f"on {name}")
        before, current[0] = current[0], name
        try:
            yield
        finally:
            if name == "capture" and fails:
                raise RuntimeError("a capture without an end")
            said.append(f"off {name}")
            current[0] = before

    collects: list[bool] = []

    class Graph:
        def replay(self) -> None:
            said.append("replay")

    def capture(graph: Any, pool: Any, stream: Any, capture_error_mode: str) -> Any:
        assert isinstance(graph, Graph)
        assert (pool, stream, capture_error_mode) == ("pool", side, "thread_local")
        return on("capture")

    fakes = {
        "graph_pool_handle": lambda: "pool",
        "Stream": lambda device: side,
        "current_stream": lambda device: main,
        "stream": lambda one: on(one.name),
        "CUDAGraph": Graph,
        "graph": capture,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    graphs = Graphs(CudaRecorder(torch.device("cuda")))

    def run() -> None:
        said.append("run")
        collects.append(gc.isenabled())

    if fails:
        with pytest.warns(RuntimeWarning, match="a capture without an end"):
            graphs.add("a", [run])
        assert current == ["main"]
        assert gc.isenabled()
        return
    graphs.add("a", [run])
    graphs.run("a")
    assert (collects, gc.isenabled()) == ([True, True, False], True)
    warm = ["side waits main", "on side", "run", "run", "off side", "main waits side"]
    capture_there = ["on main", "on capture", "run", "off capture", "off main"]
    assert said == [*warm, *capture_there, "replay"]


def test_torch_takes_these_words() -> None:
    """The names of ``torch.cuda.graph``'s arguments in the installed torch."""
    import inspect

    names = inspect.signature(torch.cuda.graph.__init__).parameters
    assert {"cuda_graph", "pool", "stream", "capture_error_mode"} <= set(names)
