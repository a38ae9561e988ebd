"""One family of checkpoints: how its directories are told apart and read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlakern.errors import CheckpointError
from vlakern.models.config import VLAConfig
from vlakern.models.vla import VLA
from vlakern.models.weights.native import PolicyRecords
from vlakern.models.weights.weights_file import INDEX, WEIGHTS
from vlakern.untrusted import read_json

__all__ = ["Family", "Weights", "native_shapes", "peek", "weights_path"]

Weights = Callable[[str], Tensor]


def weights_path(directory: Path) -> Path:
    """The file of a directory's weights, or the index of its files."""
    one, index = directory / WEIGHTS, directory / INDEX
    return index if index.exists() and not one.exists() else one


@dataclass(frozen=True)
class Family:
    """How the directories of one family of checkpoints are read.

    Attributes:
        name: for people.
        looked_for: what tells such a directory, for people.
        detect: whether a directory is one; reads no more than its JSON.
        read: everything but the weights.
        weights: native tensors by name, mapped and folded when they are asked for.
        file: the file that stands for the weights: a cache made of them is as old as it is.
    """

    name: str
    looked_for: str
    detect: Callable[[Path], bool]
    read: Callable[[Path], PolicyRecords]
    weights: Callable[[Path, VLAConfig], Weights]
    file: Callable[[Path], Path] = weights_path


def peek(path: Path) -> dict[str, Any]:
    """The object in a JSON file, to tell families apart; empty where there is none to read."""
    try:
        found = read_json(path)
    except CheckpointError:
        return {}
    return found if isinstance(found, dict) else {}


def native_shapes(config: VLAConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our state dict."""
    with torch.device("meta"):
        return {name: tuple(w.shape) for name, w in VLA(config).state_dict().items()}
