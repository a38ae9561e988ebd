"""Timing side by side: medians of interleaved runs, for machines that are not quiet."""

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch

__all__ = [
    "Timing",
    "clock_of",
    "cold_copies",
    "copy_bandwidth",
    "interleave",
    "interleave_cold",
    "keep_memory",
]


@dataclass(frozen=True)
class Timing:
    """One contender's times [s], sorted, and how they were taken."""

    seconds: tuple[float, ...]
    clock: str = "wall clock"

    @property
    def median(self) -> float:
        """The middle time [s]."""
        return median(self.seconds)

    @property
    def best(self) -> float:
        """The shortest time [s]."""
        return self.seconds[0]


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    repeats: int,
    before_each: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Runs the contenders in turn, ``repeats`` times, so that what else runs here hits all alike.

    Args:
        contenders: name -> what to time.
        repeats: runs of each, after one that is not counted.
        before_each: called untimed before every run, e.g. to make caches cold.
        clock: seconds from any origin.
    """
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            if before_each is not None:
                before_each()
            begin = clock()
            run()
            seconds[name].append(clock() - begin)
    return {name: Timing(tuple(sorted(times))) for name, times in seconds.items()}


def interleave_cold(
    contenders: Mapping[str, Sequence[Callable[[], object]]], repeats: int
) -> dict[str, Timing]:
    """``interleave`` on a CPU of calls whose operands no cache holds; seconds are per call.

    A contender has several calls, each on operands of its own, made one after the other. Before
    them there is a pause of 20 ms, in which the threads of the contender before fall asleep (an
    awake one would take a core from the next), and one thread reads more than the caches hold.
    """
    lines = np.ones(128 << 17, dtype=np.int64)

    def chill() -> None:
        time.sleep(0.02)
        lines.sum()

    def in_turn(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
        return lambda: [call() for call in calls]

    turns = {name: in_turn(calls) for name, calls in contenders.items()}
    timings = interleave(turns, repeats, before_each=chill)
    return {
        name: replace(one, seconds=tuple(s / len(contenders[name]) for s in one.seconds))
        for name, one in timings.items()
    }


def cold_copies(size: int) -> int:
    """How many copies of operands of ``size`` bytes a benchmark takes: 128 MiB, and 2 to 16."""
    return min(16, max(2, (128 << 20) // max(size, 1)))


def keep_memory() -> None:
    """Lets glibc keep freed memory, so that no contender pays the system for fresh pages."""
    trim_threshold, most_mapped = -1, -4  # names of mallopt's parameters in malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(most_mapped, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def copy_bandwidth(device: str = "cpu", size: int | None = None, passes: int = 10) -> float:
    """Bytes read and written per second [B/s] by a copy that no cache holds, best of ``passes``.

    256 MiB by default; 2 GiB on a GPU, where the host's part would else be some per cent.
    """
    size = size or (256 << 20 if device == "cpu" else 2 << 30)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    copied = interleave({"copy": lambda: target.copy_(source)}, passes, clock=clock_of(device))
    return 2 * size / copied["copy"].best


def clock_of(device: str) -> Callable[[], float]:
    """A clock [s] that waits until the device has done what it was asked."""
    if device == "cpu":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)  # which need not be torch's current one
        return time.perf_counter()

    return clock
