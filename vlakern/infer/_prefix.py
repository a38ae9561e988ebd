"""Decided actions of a robot in the numbers of its policy's network.

Dimension letters: H chunk, A action width, S state width.
"""

import numpy as np
import torch

from vlakern.errors import InputError
from vlakern.flow.solver import Frozen
from vlakern.space.action_space import ActionSpace
from vlakern.types import ActionPrefix

__all__ = ["frozen_prefix"]


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
