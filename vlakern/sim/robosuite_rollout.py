"""A policy on several robosuite arms: which it may drive, and their environments by one name."""

from collections.abc import Sequence
from typing import Protocol

from vlakern.errors import InputError
from vlakern.sim.robosuite import RobosuiteEnv
from vlakern.sim.robosuite_collect import robot_name
from vlakern.sim.robosuite_setup import ARMS, TASKS, split_words
from vlakern.space import Embodiment, embodiment

__all__ = ["check_arms", "make_env", "pairs"]


class Driver(Protocol):
    """A policy that knows whose numbers it speaks."""

    @property
    def name(self) -> str: ...
    @property
    def robot(self) -> Embodiment: ...


def pairs(arms: str | None, tasks: str, policy: Driver) -> tuple[list[str], tuple[str, ...]]:
    """The arms, and ``task-arm`` for every task on every arm.

    Args:
        arms: separated by commas; None is the policy's own.
        tasks: separated by commas.

    Raises:
        InputError: an arm or task that is not known, or a policy of no known arm and no ``arms``.
    """
    if arms is None:
        own = [arm for arm in ARMS if robot_name(arm) == policy.robot.name]
        if not own:
            raise InputError(
                f"policy {policy.name} is for robot {policy.robot.name!r}, which is no arm of"
                f" robosuite; name arms with --arms, some of {', '.join(ARMS)}"
            )
        arms = own[0]
    names = split_words(arms, ARMS, "arm")
    doing = split_words(tasks, TASKS, "task")
    return list(names), tuple(f"{task}-{arm}" for arm in names for task in doing)


def check_arms(policy: Driver, arms: Sequence[str]) -> None:
    """Refuses an arm whose states and actions are not numbers of the policy's robot.

    Raises:
        InputError: naming the arm and what differs.
    """
    mine = policy.robot
    for arm in arms:
        theirs = embodiment(robot_name(arm))
        for part in ("state", "action", "poses", "controller"):
            if getattr(mine, part) != getattr(theirs, part):
                raise InputError(
                    f"policy {policy.name} is for robot {mine.name!r}, whose {part} differs from"
                    f" that of {theirs.name!r}; drive {arm} with a policy that was trained for it"
                )


def make_env(pair: str, *, views: Sequence[str], image_size: int) -> RobosuiteEnv:
    """The environment of a ``task-arm`` of :func:`pairs`."""
    task, _, arm = pair.rpartition("-")
    return RobosuiteEnv(task, arm, views=views, image_size=image_size)
