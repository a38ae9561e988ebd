"""The model in plain PyTorch: the reference for every kernel and engine."""

from vlakern.models.config import VLAConfig
from vlakern.models.presets import PRESETS, preset
from vlakern.models.vla import VLA, Prefix

__all__ = ["PRESETS", "VLA", "Prefix", "VLAConfig", "preset"]
