"""Policy directories and checkpoints of each family."""

from vlakern.models.weights.native import Embodiment, PolicyFiles, Processing, read, write

__all__ = ["Embodiment", "PolicyFiles", "Processing", "read", "write"]
