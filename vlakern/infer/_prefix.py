"""Decided actions of a robot in the numbers of its policy's network.

Dimension letters: H chunk, A action width, S state width.
"""

from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch

from vlakern.errors import InputError
from vlakern.flow.guidance import Guidance, overlap_mask
from vlakern.flow.solver import Frozen
from vlakern.space.action_space import ActionSpace
from vlakern.types import ActionPrefix, PrefixForm

__all__ = ["Decided", "decided_of"]


@dataclass(frozen=True)
class Decided:
    """What an engine is told of the actions that were decided before."""

    frozen: Frozen | None = None
    guidance: Guidance | None = None


def decided_of(
    prefix: ActionPrefix | None, state_S: np.ndarray, space: ActionSpace, chunk: int
) -> Decided:
    """A prefix in the form that it asks for, seen from the state of its observation.

    Raises:
        InputError: an unknown form, more frozen actions than there are or than a chunk has, or
            actions that are not the robot's.
    """
    if prefix is None:
        return Decided()
    if prefix.form not in get_args(PrefixForm):
        known = ", ".join(get_args(PrefixForm))
        raise InputError(f"the form of a prefix is {prefix.form!r}, expected one of {known}")
    if prefix.form == "frozen":
        return Decided(frozen=frozen_prefix(prefix, state_S, space, chunk))
    every = min(len(prefix.actions), chunk)
    decided = frozen_prefix(replace(prefix, frozen=every), state_S, space, chunk)
    if not 0 <= prefix.frozen <= every:
        raise InputError(f"{prefix.frozen} frozen actions of {every}; expected 0 to {every}")
    weights_HA = overlap_mask(chunk, prefix.frozen, every)[:, None] * torch.from_numpy(
        space.action_mask.astype(np.float32)
    )
    exact = prefix.form == "exact"
    return Decided(guidance=Guidance(decided.action_RHA, weights_HA[None], exact=exact))


def frozen_prefix(
    prefix: ActionPrefix, state_S: np.ndarray, space: ActionSpace, chunk: int
) -> Frozen:
    """The frozen actions of one observation, seen from its state.

    Raises:
        InputError: more frozen actions than there are or than a chunk has, or actions that are not
            the robot's.
    """
    actions, count = np.asarray(prefix.actions), prefix.frozen
    if actions.ndim != 2 or not 0 <= count <= min(len(actions), chunk):
        raise InputError(
            f"prefix is {list(actions.shape)} with {count} frozen, expected [steps, numbers of a"
            f" command] with at most its steps and the chunk's {chunk} frozen"
        )
    action_1HA = torch.zeros(1, chunk, len(space.action_mask))
    if count:
        known = space.encode(actions[None, :count], state_S[None])
        action_1HA[:, :count] = torch.from_numpy(known)
    return Frozen(action_1HA, torch.tensor([count], dtype=torch.int32))
