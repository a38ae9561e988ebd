"""State and action spaces: the same objects in training and on the robot."""

from vlakern.space.action_space import ActionSpace
from vlakern.space.embodiment import (
    Controller,
    Embodiment,
    Field,
    Joint,
    compact,
    embodiment,
    robot_and_slots,
    shipped_embodiments,
)
from vlakern.space.frames import FRAMES, Frame, Pose, decode, encode
from vlakern.space.normalize import Normalizer, VectorStats
from vlakern.space.rotation import Rotation
from vlakern.space.slots import Slot, SlotMap, check_slots, slot_map

__all__ = [
    "FRAMES",
    "ActionSpace",
    "Controller",
    "Embodiment",
    "Field",
    "Frame",
    "Joint",
    "Normalizer",
    "Pose",
    "Rotation",
    "Slot",
    "SlotMap",
    "VectorStats",
    "check_slots",
    "compact",
    "decode",
    "embodiment",
    "encode",
    "robot_and_slots",
    "shipped_embodiments",
    "slot_map",
]
