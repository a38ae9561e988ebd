"""A policy is run before anyone may ask, so that no robot waits for a first call."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, get_args

import numpy as np

from vlakern.errors import Unsupported
from vlakern.infer.policy import Policy
from vlakern.types import ActionPrefix, Observation, PrefixForm

__all__ = ["describe", "prefix_forms", "warm_up"]


def warm_up(policy: Policy, most: int) -> float:
    """Calls of one row and of ``most`` rows; returns the slowest second call [ms]."""
    return max(_called(policy, most, None), _called(policy, 1, None))


def prefix_forms(policy: Policy, most: int) -> tuple[PrefixForm, ...]:
    """Forms of prefixes that the policy's engine has; calls of one row and of ``most`` rows."""
    chunk = policy.act(_look(policy), 0).actions
    found: list[PrefixForm] = []
    for form in get_args(PrefixForm):
        with suppress(Unsupported):
            for rows in (most, 1):
                _called(policy, rows, [ActionPrefix(chunk, 1, form)] * rows)
            found.append(form)
    return tuple(found)


def _look(policy: Policy) -> Observation:
    side = policy.image_size
    images = {view: np.zeros((side, side, 3), np.uint8) for view in policy.views}
    return Observation(images, np.zeros(policy.robot.state_width, np.float32), "warm up")


def _called(policy: Policy, rows: int, prefixes: Sequence[ActionPrefix] | None) -> float:
    """Time of the second of two calls [ms]; the first builds, and on a GPU captures."""
    seen, seeds = [_look(policy)] * rows, list(range(rows))
    policy.act_batch(seen, seeds, prefixes)
    begin = time.perf_counter()
    policy.act_batch(seen, seeds, prefixes)
    return (time.perf_counter() - begin) * 1e3


def describe(policy: Policy) -> dict[str, Any]:
    """What the handshake says of a policy."""
    controller = policy.robot.controller
    return {
        "policy": policy.name,
        "robot": policy.robot.name,
        "frame": policy.frame,
        "controller": None if controller is None else controller.name,
        "views": list(policy.views),
        "state": [entry.slot for entry in policy.robot.state],
        "state_width": policy.robot.state_width,
        "actions": [entry.slot for entry in policy.robot.action],
        "action_width": policy.robot.action_width,
        "chunk": policy.chunk,
        "execute": policy.execute,
        "control_rate": policy.control_rate,
    }
