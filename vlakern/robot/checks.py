"""What a loop is given is what it will use: said in one sentence before the robot moves."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from vlakern.errors import InputError
from vlakern.robot.ports import Seen
from vlakern.robot.settings import LoopConfig

__all__ = ["check_chunk", "check_parts", "check_seen"]


def check_parts(robot: object, policy: object, config: LoopConfig) -> None:
    """What a loop will call is there.

    Raises:
        InputError: a robot or a policy without it.
    """
    calls = ("observe", "position", "send")
    lacking = [name for name in calls if not callable(getattr(robot, name, None))]
    if lacking:
        raise InputError(
            f"the robot, a {type(robot).__name__}, has no {' and no '.join(lacking)}; give an"
            " object with observe, position and send, such as vlakern.robot.Rig"
        )
    act = getattr(policy, "act", None)
    if not callable(act):
        raise InputError(
            f"the policy, a {type(policy).__name__}, has no act; give what vlakern.load returns, or"
            " an object with act(observation, prefix=None)"
        )
    if config.prefix and not _takes_prefix(act):
        raise InputError(
            f"loop.prefix is set, and act of the policy, a {type(policy).__name__}, takes no"
            " prefix; leave loop.prefix out, or add prefix=None to its arguments"
        )


def _takes_prefix(act: Callable[..., Any]) -> bool:
    found = inspect.signature(act).parameters.values()
    return any(one.name == "prefix" or one.kind is one.VAR_KEYWORD for one in found)


def check_seen(seen: object) -> Seen:
    """What ``observe`` gave is a look.

    Raises:
        InputError: it is not.
    """
    if isinstance(seen, Seen):
        return seen
    raise InputError(
        f"the robot's observe gave {type(seen).__name__}, expected Seen(observation, time_ns) or"
        " None"
    )


def check_chunk(chunk: object, width: int) -> None:
    """A chunk is one, as wide as the limits.

    Raises:
        InputError: it is not.
    """
    shape = np.shape(getattr(chunk, "actions", 0))
    if len(shape) != 2 or shape[0] < 1 or shape[1] != width:
        found = f"actions {list(shape)}" if hasattr(chunk, "actions") else type(chunk).__name__
        raise InputError(
            f"the policy's act gave {found}, expected an ActionChunk with actions [steps, {width}]:"
            " one number per dimension of the limits"
        )
