"""A policy is run before anyone may ask, so that no robot waits for a first call."""

import time
from typing import Any

import numpy as np

from vlakern.infer.policy import Policy
from vlakern.types import Observation

__all__ = ["describe", "warm_up"]


def warm_up(policy: Policy, most: int) -> float:
    """Calls of one row and of ``most`` rows; returns the slowest second call [ms]."""
    side = policy.image_size
    images = {view: np.zeros((side, side, 3), np.uint8) for view in policy.views}
    state = np.zeros(policy.robot.state_width, np.float32)
    seen = Observation(images, state, "warm up")
    slowest = 0.0
    for rows in sorted({1, most}, reverse=True):
        policy.act_batch([seen] * rows, list(range(rows)))  # builds, and on a GPU captures
        begin = time.perf_counter()
        policy.act_batch([seen] * rows, list(range(rows)))
        slowest = max(slowest, (time.perf_counter() - begin) * 1e3)
    return slowest


def describe(policy: Policy) -> dict[str, Any]:
    """What the handshake says of a policy."""
    return {
        "policy": policy.name,
        "robot": policy.robot.name,
        "views": list(policy.views),
        "state": [entry.slot for entry in policy.robot.state],
        "state_width": policy.robot.state_width,
        "actions": [entry.slot for entry in policy.robot.action],
        "action_width": policy.robot.action_width,
        "chunk": policy.chunk,
        "execute": policy.execute,
        "control_rate": policy.control_rate,
    }
