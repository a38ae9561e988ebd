"""Frozen records that cross rooms.

Dimension letters: V views, H image height or chunk length, W image width, A action width, S state
width, K actions that were decided before. Images are what a camera gives; nothing is normalised.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

__all__ = ["STAGES", "ActionChunk", "ActionPrefix", "Observation", "PrefixForm"]

PrefixForm = Literal["frozen", "cheap", "exact"]

# "model" instead of the three before it, where a GPU does all in one launch.
STAGES = ("preprocess", "vision", "prefix", "ode", "model", "postprocess", "total")


@dataclass(frozen=True)
class Observation:
    """What a robot sees and is told at one instant.

    Attributes:
        images: view name -> uint8 ``[H, W, 3]`` RGB. A view that is absent is a dropped camera.
        state: float32 ``[S]`` proprioception in the embodiment's native units.
        instruction: the task in words.
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray
    instruction: str


@dataclass(frozen=True)
class ActionChunk:
    """The next H actions in the embodiment's native units.

    Attributes:
        actions: float32 ``[H, A]``; row 0 is for the instant of the observation.
        latency_ms: stage of ``STAGES`` -> wall time [ms] of the call that made the chunk; a batched
            call gives every row the time of the whole call. On a GPU one launch may go from images
            to actions: then there is ``model``, with the images' way to the GPU and their
            resizing, and no ``vision``, ``prefix`` or ``ode``.
        info: what else the policy has to say (seed, steps), for logs.
    """

    actions: np.ndarray
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ActionPrefix:
    """What a robot goes on to do while its next chunk is made (real-time chunking).

    Attributes:
        actions: ``[K, A]`` of the chunk before, in the units of chunks; row 0 is for the instant of
            the observation that the next chunk is made from.
        frozen: how many of them will have been executed when it is there; it starts with those.
        form: how the next chunk is made to agree. ``frozen`` keeps those exactly and says nothing
            of the rest, for networks trained with delays. ``cheap`` leads any network to all of
            them, less and less firmly (arXiv 2506.07339), by the masked error itself; ``exact`` by
            its product with the network's Jacobian, which takes a backward pass per evaluation.
    """

    actions: np.ndarray
    frozen: int
    form: PrefixForm = "frozen"
