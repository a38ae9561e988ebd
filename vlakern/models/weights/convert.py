"""From any known policy directory to a native one, bit by bit."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch

from vlakern.errors import CheckpointError
from vlakern.models.vla import VLA
from vlakern.models.weights.families import Opened, open_policy
from vlakern.models.weights.family import native_shapes
from vlakern.models.weights.names import Folded, origin
from vlakern.models.weights.native import PolicyFiles, write

__all__ = ["check_new", "distances", "skipped", "to_native"]


def check_new(target: Path) -> None:
    """Refuses to write where something is.

    Raises:
        CheckpointError: naming the directory.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists; name a directory that is not there yet")


def to_native(
    source: Path, target: Path, seen: Callable[[str], None] = lambda name: None
) -> Opened:
    """Writes a native policy directory with the weights of ``source``.

    What a fold computes is kept in fp32, everything else in the source's dtype; the weights are
    mapped, so that only what is folded takes memory.

    Args:
        seen: is told the name of each tensor.

    Returns:
        The source, still open.

    Raises:
        CheckpointError, ConfigError: ``source`` cannot be read or ``target`` not be written.
    """
    check_new(target)
    opened = open_policy(source)
    with torch.device("meta"):
        network = VLA(opened.records.config)
    tensors = {}
    for name in network.state_dict():
        tensors[name] = tensor = opened.weights(name)
        if tensor.numel() and not torch.isfinite(tensor.amax() - tensor.amin()):
            raise CheckpointError(
                f"{origin(opened.weights, name)} holds values that are not finite; copy the file"
                " again, or use a checkpoint of another step"
            )
        seen(name)
    network.load_state_dict(tensors, assign=True)
    parts = {one.name: getattr(opened.records, one.name) for one in fields(opened.records)}
    del parts["config"]
    write(target, PolicyFiles(network, **parts), dtype=None)
    return opened


def distances(source: Opened, target: Opened) -> dict[str, float]:
    """By tensor, the largest difference relative to the source's largest number; 0 for equal bits.

    Raises:
        CheckpointError: a tensor has another shape in one of them.
    """
    return {
        name: _distance(name, source.weights(name), target.weights(name))
        for name in native_shapes(source.records.config)
    }


def _distance(name: str, left: torch.Tensor, right: torch.Tensor) -> float:
    if left.shape != right.shape:
        raise CheckpointError(f"{name!r} is {list(left.shape)} and {list(right.shape)}")
    if torch.equal(left, right):
        return 0.0
    most = float(left.abs().max())
    return float((left.float() - right.float()).abs().max()) / max(most, 1e-30)


def skipped(opened: Opened) -> dict[str, str]:
    """Tensors of the source that are not used, with the reason."""
    return opened.weights.binding.skipped if isinstance(opened.weights, Folded) else {}
