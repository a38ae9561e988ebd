"""Timing side by side: medians of interleaved runs, for machines that are not quiet."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

__all__ = ["Timing", "interleave"]


@dataclass(frozen=True)
class Timing:
    """One contender's times [s], sorted."""

    seconds: tuple[float, ...]

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
