"""One demonstration without its pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
        instructions: every instruction that the dataset has for the episode, by its field there;
            ``task`` is one of them.
    """

    index: int
    task: str
    states: np.ndarray
    actions: np.ndarray
    instructions: Mapping[str, str] = field(default_factory=dict)
