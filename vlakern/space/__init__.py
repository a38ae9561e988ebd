"""State and action spaces: the same objects in training and on the robot."""

from vlakern.space.normalize import Normalizer, VectorStats
from vlakern.space.slots import Slot, check_slots

__all__ = ["Normalizer", "Slot", "VectorStats", "check_slots"]
