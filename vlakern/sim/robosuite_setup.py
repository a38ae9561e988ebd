"""What a robosuite environment is made of: tasks, arms, the controller's settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vlakern.errors import InputError

__all__ = [
    "ARMS",
    "CONTROL_RATE",
    "POSITION_SCALE",
    "ROTATION_SCALE",
    "TASKS",
    "Arm",
    "Osc",
    "Scene",
    "Step",
    "Task",
    "known",
    "settings",
    "split_words",
]

CONTROL_RATE = 20.0  # [Hz]
POSITION_SCALE = 0.05  # [m] per unit of a delta action
ROTATION_SCALE = 0.5  # [rad] per unit of a delta action


@dataclass(frozen=True)
class Task:
    """A sentence for the policy, and the bodies that its expert reads: what to move, and where.

    ``cube`` and ``target`` are the attributes of robosuite's environment that hold their numbers.
    """

    instruction: str
    cube: str
    target: str | None = None


TASKS: Mapping[str, Task] = {
    "Lift": Task("pick up the red cube", "cube_body_id"),
    "Stack": Task("put the red cube on the green cube", "cubeA_body_id", "cubeB_body_id"),
}


@dataclass(frozen=True)
class Arm:
    """A gripper: its first joint when closed on nothing and when open, and its fingertips."""

    closed: float
    open: float
    tips: tuple[str, str]


_ROBOTIQ = ("left_fingerpad_collision", "right_fingerpad_collision")
ARMS: Mapping[str, Arm] = {
    "Panda": Arm(0.0, 0.04, ("finger1_pad_collision", "finger2_pad_collision")),
    "Sawyer": Arm(-0.0115, 0.0115, ("l_fingerpad_g0", "r_fingerpad_g0")),
    "UR5e": Arm(0.52, -0.027, _ROBOTIQ),
    "IIWA": Arm(0.4927, 0.0137, _ROBOTIQ),
    "Kinova3": Arm(0.52, -0.027, _ROBOTIQ),
    "XArm7": Arm(0.825, 0.028, ("left_finger_pad_1", "right_finger_pad_1")),
}


@dataclass(frozen=True)
class Osc:
    """What the controller makes of the six numbers for the hand.

    Attributes:
        input: "delta": each in [-1, 1], times 0.05 m and 0.5 rad, added to the reference; the
            rotation vector multiplies from the left. "absolute": position [m] and rotation vector
            [rad] of the goal.
        frame: the frame in which they are given.
        update: what a delta refers to: the pose "achieved" now, or the goal "desired" before.
    """

    input: Literal["delta", "absolute"] = "delta"
    frame: Literal["base", "world"] = "base"
    update: Literal["achieved", "desired"] = "achieved"

    def __post_init__(self) -> None:
        known(self.input, ("delta", "absolute"), "input")
        known(self.frame, ("base", "world"), "frame")
        known(self.update, ("achieved", "desired"), "update")


@dataclass(frozen=True)
class Scene:
    """What only a scripted expert may read.

    Attributes:
        cube: float64 ``[7]`` pose of the cube to move in the base frame, quaternion x, y, z, w.
        fingers: float64 ``[3]`` unit vector from one finger to the other in the base frame.
        target: as ``cube``, of what to put it on; None where there is no such thing.
    """

    cube: np.ndarray
    fingers: np.ndarray
    target: np.ndarray | None = None


@dataclass(frozen=True)
class Step:
    """After one action: whether the task is solved now, and float32 ``[8]`` proprioception."""

    success: bool
    state: np.ndarray


def known(name: str, table: Any, kind: str) -> Any:
    """``name`` if ``table`` has it.

    Raises:
        InputError: naming what the table has.
    """
    if name not in table:
        raise InputError(f"{kind} {name!r} is not known; use one of {', '.join(table)}")
    return name


def settings(osc: Osc) -> dict[str, Any]:
    """What robosuite calls the settings of the arm's controller."""
    return {
        "type": "OSC_POSE",
        "input_type": osc.input,
        "input_ref_frame": osc.frame,
        "input_max": 1.0,
        "input_min": -1.0,
        "output_max": [POSITION_SCALE] * 3 + [ROTATION_SCALE] * 3,
        "output_min": [-POSITION_SCALE] * 3 + [-ROTATION_SCALE] * 3,
    }


def split_words(words: str, table: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """The names of ``table`` that a comma-separated list names, each once, in its order.

    Raises:
        InputError: a word that is none, or no word.
    """
    names = dict.fromkeys(word.strip() for word in words.split(","))
    return tuple(known(name, table, kind) for name in names)
