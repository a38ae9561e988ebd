"""Times of GPU work as an engine meets it: inside a CUDA graph, with nothing in the caches.

A graph of so many turns of [flush, call] and one of as many times [flush] are replayed in turn; a
call takes the difference over the number of turns. It holds what a kernel costs in a chain: its
launch inside a graph, its memory from DRAM, and no host.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vlakern.testing.timing import Timing, interleave

__all__ = ["GRAPH", "STREAM", "WALL", "flusher", "interleave_on", "per_call"]

TURNS = 10
WARM_UP = 3  # before a capture: compiles, loads modules, makes handles and workspaces
GRAPH = "CUDA events around a graph, caches flushed by reads"
STREAM = "CUDA events around a call, caches flushed by reads"
WALL = "wall clock"


def per_call(with_calls: float, without: float, turns: int) -> float:
    """Seconds of one call, from the times of the graph with and of the one without calls [s].

    Noise can make a difference that is not positive; it then says no more than "under 10 ns".
    """
    return max((with_calls - without) / turns, 1e-8)


def flusher(device: str) -> Callable[[], None]:
    """A call that reads four times what the L2 cache holds: it leaves clean lines, which the next
    kernel need not write back."""
    seen: Any = torch.cuda.get_device_properties(torch.device(device))
    size = 4 * max(getattr(seen, "L2_cache_size", 0), 32 << 20)
    lines = torch.ones(size // 4, device=device)
    total = torch.empty((), device=device)

    def flush() -> None:
        torch.sum(lines, dim=0, out=total)

    return flush


@dataclass(frozen=True)
class Prepared:
    """One contender: a graph with turns of it, or the call itself where it cannot be captured."""

    replay: Callable[[], object]
    clock: str


def interleave_on(
    device: str,
    contenders: Mapping[str, Callable[[], object]],
    repeats: int,
    on_host: Collection[str] = (),
) -> dict[str, Timing]:
    """``interleave`` on the CPU; on a GPU times inside graphs, interleaved likewise.

    Args:
        device: ``cpu`` or ``cuda``.
        contenders: name -> what to time. On a GPU a call that waits for it (reads a value back,
            allocates pinned memory) cannot be captured and is timed between two events instead;
            ``Timing.clock`` says which.
        repeats: runs of each, after those that are not counted.
        on_host: names of contenders that work on the CPU, timed by the wall clock.
    """
    if torch.device(device).type == "cpu":
        return interleave(contenders, repeats)
    flush = flusher(device)
    empty = _captured(flush, lambda: None)
    if empty is None:
        raise RuntimeError("this GPU's caches cannot be flushed inside a CUDA graph")
    ready = {name: _prepare(flush, run, name in on_host) for name, run in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, one in ready.items():
            seconds[name].append(_once(one, flush, empty))
    return {
        name: Timing(tuple(sorted(times)), ready[name].clock) for name, times in seconds.items()
    }


def _prepare(flush: Callable[[], object], run: Callable[[], object], on_host: bool) -> Prepared:
    if on_host:
        run()
        return Prepared(run, WALL)
    replay = _captured(flush, run)
    return Prepared(run, STREAM) if replay is None else Prepared(replay, GRAPH)


def _captured(
    flush: Callable[[], object], run: Callable[[], object]
) -> Callable[[], object] | None:
    """The replay of a graph of turns, None if the call cannot be part of one."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            flush()
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(TURNS):
                flush()
                run()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay


def _once(one: Prepared, flush: Callable[[], object], empty: Callable[[], object]) -> float:
    """Seconds of one call."""
    if one.clock == WALL:
        timed = interleave({"host": lambda: (one.replay(), torch.cuda.synchronize())}, 1)
        return timed["host"].best
    if one.clock == STREAM:
        flush()
        return _between_events(one.replay)
    return per_call(_between_events(one.replay), _between_events(empty), TURNS)


def _between_events(run: Callable[[], object]) -> float:
    """Seconds that the GPU spends on what ``run`` gives it."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
