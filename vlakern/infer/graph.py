"""Programs of kernels: recorded once and replayed in one launch, or run one kernel after another.

A program is a list of calls without arguments on memory that stays in place; it allocates nothing,
waits for nothing and reads no value back, so that a recording of it is the program itself.
"""

import gc
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch

__all__ = ["CudaRecorder", "Graphs", "Program", "Recorder", "Run"]

Run = Callable[[], object]
Program = Sequence[Run]
RECORDING = threading.Lock()  # one at a time in a process, as torch has it
WARM_UP = 2  # runs before a capture: they make handles and workspaces, which a capture must not


class Recorder(Protocol):
    """Turns a program into one call that does the same."""

    def warm_up(self, program: Program) -> None:
        """Runs the program as often as a recording of it needs."""
        ...

    def record(self, program: Program) -> Run:
        """The replay; raises RuntimeError where the program cannot be recorded."""
        ...


class CudaRecorder:
    """CUDA graphs, which share one pool of memory: nothing in it outlives a replay."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._side = torch.cuda.Stream(device)

    def warm_up(self, program: Program) -> None:
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            for _ in range(WARM_UP):
                run_all(program)
        torch.cuda.current_stream(self._device).wait_stream(self._side)

    def record(self, program: Program) -> Run:
        graph = torch.cuda.CUDAGraph()
        # Cameras and loggers in other threads may use the GPU meanwhile.
        mode = "thread_local"
        where = {"pool": self._pool, "stream": self._side}
        # torch leaves the side stream current where it cannot end a capture.
        current = torch.cuda.stream(torch.cuda.current_stream(self._device))
        captured = torch.cuda.graph(graph, capture_error_mode=mode, **where)
        with RECORDING, _uncollected(), current, captured:
            run_all(program)
        return graph.replay


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage is collected inside: an old graph or pinned array that ends ends a capture."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def run_all(program: Program) -> None:
    for run in program:
        run()


class Graphs:
    """Programs by name, recorded as long as that works.

    Attributes:
        why_eager: why programs run kernel by kernel, None while recordings of them are replayed.
        recorded: how many programs were recorded.
        recording_s: how long that took, with the runs before each recording [s].
    """

    def __init__(self, recorder: Recorder | None) -> None:
        self.why_eager = "no recorder was given" if recorder is None else None
        self.recorded, self.recording_s = 0, 0.0
        self._recorder = recorder
        self._programs: dict[Hashable, Program] = {}
        self._replays: dict[Hashable, Run] = {}

    def __contains__(self, name: Hashable) -> bool:
        return name in self._programs

    def add(self, name: Hashable, program: Program, warm: bool = False) -> None:
        """Keeps a program and records it; what it writes is overwritten by the warm-up.

        Args:
            warm: all its calls were warmed up as parts of programs before.
        """
        self._programs[name] = tuple(program)
        if self._recorder is None:
            return
        begin = time.perf_counter()
        # Outside of the attempt: a kernel that fails here fails without a recording, too.
        if not warm:
            self._recorder.warm_up(self._programs[name])
        try:
            self._replays[name] = self._recorder.record(self._programs[name])
        except RuntimeError as error:
            self._give_up(f"recording {name} failed: {error}")
            return
        self.recorded += 1
        self.recording_s += time.perf_counter() - begin

    def warm_up(self, program: Program) -> None:
        """Prepares calls for recordings of programs that they will be part of."""
        if self._recorder is not None:
            self._recorder.warm_up(program)

    def run(self, name: Hashable) -> None:
        """Replays a program, or runs it where there is no recording or the replay fails."""
        replay = self._replays.get(name)
        if replay is not None:
            try:
                replay()
                return
            except RuntimeError as error:
                self._give_up(f"replaying {name} failed: {error}")
        run_all(self._programs[name])

    def _give_up(self, why: str) -> None:
        self._recorder, self.why_eager = None, why
        self._replays.clear()
        warnings.warn(
            f"CUDA graphs are off for this engine, its kernels are launched one by one, which is"
            f" slower: {why}",
            RuntimeWarning,
            stacklevel=3,
        )
