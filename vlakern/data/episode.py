"""One demonstration without its pictures."""

from dataclasses import dataclass

import numpy as np

__all__ = ["Episode"]


@dataclass(frozen=True)
class Episode:
    """T instants of one demonstration.

    Attributes:
        index: position in its dataset.
        task: the instruction in words.
        states: float32 ``[T, S]`` proprioception in native units.
        actions: float32 ``[T, A]``; row t is what to do at instant t.
    """

    index: int
    task: str
    states: np.ndarray
    actions: np.ndarray
