"""Decided actions of robots in the numbers of their policy's network.

Dimension letters: R rows, H chunk, A action width, S state width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch
from torch import Tensor

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
    prefixes: Sequence[ActionPrefix | None],
    states_RS: Sequence[np.ndarray],
    space: ActionSpace,
    chunk: int,
) -> Decided:
    """A call's prefixes in the form that they ask for, each seen from its observation's state.

    Raises:
        InputError: an unknown form or two of them, another number of prefixes than of states, more
            frozen actions than there are or than a chunk has, or actions that are not the robot's.
    """
    if len(prefixes) != len(states_RS):
        raise InputError(
            f"found {len(prefixes)} prefixes for {len(states_RS)} observations; give one each, None"
            " for none"
        )
    forms = list(dict.fromkeys(prefix.form for prefix in prefixes if prefix is not None))
    if not forms:
        return Decided()
    for form in forms:
        if form not in get_args(PrefixForm):
            known = ", ".join(get_args(PrefixForm))
            raise InputError(f"the form of a prefix is {form!r}, expected one of {known}")
    if len(forms) > 1:
        raise InputError(
            f"the prefixes of one call have the forms {' and '.join(map(repr, forms))}; ask for"
            " those of each form in a call of their own"
        )
    rows = [
        _none(space, chunk) if prefix is None else _row(prefix, state_S, space, chunk)
        for prefix, state_S in zip(prefixes, states_RS, strict=True)
    ]
    actions_RHA = torch.cat([frozen.action_RHA for frozen, _ in rows])
    if forms[0] == "frozen":
        return Decided(
            frozen=Frozen(actions_RHA, torch.cat([frozen.length_R for frozen, _ in rows]))
        )
    weights_RHA = torch.stack([weights_HA for _, weights_HA in rows])
    return Decided(guidance=Guidance(actions_RHA, weights_RHA, exact=forms[0] == "exact"))


def _none(space: ActionSpace, chunk: int) -> tuple[Frozen, Tensor]:
    """A row that is told nothing, beside others that are."""
    shape = (chunk, len(space.action_mask))
    nothing = Frozen(torch.zeros(1, *shape), torch.zeros(1, dtype=torch.int32))
    return nothing, torch.zeros(shape)


def _row(
    prefix: ActionPrefix, state_S: np.ndarray, space: ActionSpace, chunk: int
) -> tuple[Frozen, Tensor]:
    """What is decided, and how much each number of a chunk holds to it, ``[H, A]``."""
    if prefix.form == "frozen":
        return frozen_prefix(prefix, state_S, space, chunk), _none(space, chunk)[1]
    every = min(len(prefix.actions), chunk)
    decided = frozen_prefix(replace(prefix, frozen=every), state_S, space, chunk)
    if not 0 <= prefix.frozen <= every:
        raise InputError(f"{prefix.frozen} frozen actions of {every}; expected 0 to {every}")
    held_A = torch.from_numpy(space.action_mask.astype(np.float32))
    return decided, overlap_mask(chunk, prefix.frozen, every)[:, None] * held_A


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
