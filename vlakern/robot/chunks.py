"""Chunks on the clock: what is executed when, which actions a new chunk starts with, and averages.

Dimension letters: H steps of a chunk, J dimensions of a command, K steps, N times.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlakern.errors import ConfigError
from vlakern.types import ActionPrefix, PrefixForm

__all__ = ["Ensemble", "Placed", "prefix_at"]


@dataclass(frozen=True)
class Placed:
    """A chunk and when it began, as the executor has it.

    Attributes:
        actions_HJ: absolute commands.
        begin_ns: when the first is due, of ``time.monotonic_ns()``.
        step_ns: from one to the next; the last is held for as long.
        held: dimensions that keep an action until the next one.
    """

    actions_HJ: np.ndarray
    begin_ns: int
    step_ns: int
    held: tuple[int, ...] = ()

    @property
    def end_ns(self) -> int:
        return self.begin_ns + len(self.actions_HJ) * self.step_ns

    def at(self, times_ns: np.ndarray) -> np.ndarray:
        """What is wanted at these times: ``[N, J]`` float64, its ends before and after it."""
        steps = (np.asarray(times_ns, np.int64) - self.begin_ns) / self.step_ns
        steps = np.clip(steps, 0, len(self.actions_HJ) - 1)
        here = np.floor(steps).astype(int)
        following = np.minimum(here + 1, len(self.actions_HJ) - 1)
        part = (steps - here)[:, None].repeat(self.actions_HJ.shape[1], axis=1)
        part[:, list(self.held)] = 0.0
        first, second = self.actions_HJ[here], self.actions_HJ[following]
        return first + part * (second - first)

    def covers(self, times_ns: np.ndarray) -> np.ndarray:
        """bool ``[N]``: it has an action of its own for the time."""
        return (times_ns >= self.begin_ns) & (times_ns < self.end_ns)

    def times(self) -> np.ndarray:
        """When its actions are due, int64 ``[H]`` [ns]."""
        return self.begin_ns + np.arange(len(self.actions_HJ), dtype=np.int64) * self.step_ns


def prefix_at(
    running: Placed, observed_ns: int, delay: int, form: PrefixForm = "frozen"
) -> ActionPrefix | None:
    """What ``running`` goes on to do from an observation on; None where it is over.

    Args:
        observed_ns: of the observation that the next chunk is made from.
        delay: actions that are executed until that chunk is there.
        form: how that chunk is made to agree.
    """
    shifted = Placed(running.actions_HJ, observed_ns, running.step_ns).times()
    left = shifted[running.covers(shifted)]
    if not len(left) or delay < 1:
        return None
    return ActionPrefix(running.at(left), min(delay, len(left)), form)


class Ensemble:
    """Temporal ensembling (arXiv 2304.13705): what several chunks say of one time, averaged.

    The weight of the i-th of them, from the oldest on, is exp(-m·i). Dimensions that are held, such
    as switches, follow the newest chunk: an average of open and closed is neither.

    Raises:
        ConfigError: an m that is negative or not finite.
    """

    def __init__(self, m: float, held: Sequence[int] = ()) -> None:
        if not 0 <= m < float("inf"):
            raise ConfigError(f"ensemble is {m}, expected a number of 0 (a plain mean) or more")
        self._m, self._held = m, list(held)
        self._chunks: list[Placed] = []

    def add(self, chunk: Placed) -> np.ndarray:
        """The actions ``[H, J]`` to execute in place of the chunk's own."""
        self._chunks = [c for c in self._chunks if c.end_ns > chunk.begin_ns] + [chunk]
        times = chunk.times()
        weights_CH = np.zeros((len(self._chunks), len(times)))
        says_CHJ = np.stack([c.at(times) for c in self._chunks])
        rank_H = np.zeros(len(times))
        for weights_H, one in zip(weights_CH, self._chunks, strict=True):
            covers_H = one.covers(times)
            weights_H[covers_H] = np.exp(-self._m * rank_H[covers_H])
            rank_H += covers_H
        weights_CH /= weights_CH.sum(axis=0)
        mean_HJ = np.einsum("ch,chj->hj", weights_CH, says_CHJ)
        mean_HJ[:, self._held] = chunk.actions_HJ[:, self._held]
        return mean_HJ

    def move_last(self, begin_ns: int) -> None:
        """The last chunk began at another time than its observation's."""
        last = self._chunks[-1]
        self._chunks[-1] = Placed(last.actions_HJ, begin_ns, last.step_ns, last.held)

    def drop_last(self) -> None:
        """The last chunk was not accepted."""
        self._chunks.pop()

    def clear(self) -> None:
        """Forgets: the robot stood still in between."""
        self._chunks.clear()
