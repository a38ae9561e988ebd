"""Policy directories and checkpoints of each family."""

from vlakern.models.weights.native import PolicyFiles, Processing, SlotMode, read, write

__all__ = ["PolicyFiles", "Processing", "SlotMode", "read", "write"]
