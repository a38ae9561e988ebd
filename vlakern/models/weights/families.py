"""Which family a checkpoint directory is of, and the one way to open it."""

from dataclasses import dataclass, fields
from pathlib import Path

import torch

from vlakern.errors import CheckpointError
from vlakern.models.vla import VLA
from vlakern.models.weights.beingh_directories import BEINGH
from vlakern.models.weights.beingh_lerobot import LEROBOT_BEINGH
from vlakern.models.weights.family import Family, Weights, native_shapes, peek
from vlakern.models.weights.native import (
    WEIGHTS,
    PolicyFiles,
    PolicyRecords,
    check_parts,
    open_weights,
    read_records,
)
from vlakern.models.weights.pi_directories import LEROBOT_PI0, LEROBOT_PI05, OPENPI
from vlakern.models.weights.smolvla_directories import LEROBOT_SMOLVLA
from vlakern.models.weights.weights_file import check_finite
from vlakern.untrusted import shown

__all__ = ["FAMILIES", "NATIVE", "Opened", "family_of", "open_policy", "read_policy"]

# Where LeRobot's training puts a policy, below what it is told to write to.
PARTS = ("pretrained_model", "last/pretrained_model", "checkpoints/last/pretrained_model")


@dataclass(frozen=True)
class Opened:
    """A policy directory of any family, its weights mapped and not read."""

    family: Family
    records: PolicyRecords
    weights: Weights
    file: Path

    @property
    def count(self) -> int:
        """How many tensors the network has."""
        return len(native_shapes(self.records.config))


NATIVE = Family(
    "vlakern",
    "config.json with the key family",
    lambda directory: "family" in peek(directory / "config.json"),
    read_records,
    lambda directory, config: open_weights(config, directory / WEIGHTS),
)

FAMILIES: tuple[Family, ...] = (
    LEROBOT_PI0,
    LEROBOT_PI05,
    LEROBOT_SMOLVLA,
    LEROBOT_BEINGH,
    BEINGH,
    OPENPI,
)


def family_of(directory: Path, families: tuple[Family, ...] | None = None) -> Family:
    """The family of a directory: ours first, then the others.

    Raises:
        CheckpointError: none knows it; names what was looked for.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory; expected a policy directory")
    known = (NATIVE, *(FAMILIES if families is None else families))
    found = next((family for family in known if family.detect(directory)), None)
    if found is not None:
        return found
    config = directory / "config.json"
    if config.is_file() and not peek(config):
        return NATIVE  # whose reader says what is wrong with the file
    looked_for = "; ".join(f"{family.name}: {family.looked_for}" for family in known)
    raise CheckpointError(
        f"{directory} is not a policy directory of a known family: {_said(directory)}; expected one"
        f" of ({looked_for})"
    )


def _said(directory: Path) -> str:
    """What a directory of no known family has in the place of a policy, and what to do."""
    values = peek(directory / "config.json")
    if values:
        kind = values.get("type", values.get("model_type"))
        named = "names no type" if kind is None else f"is of type {shown(kind)}"
        return f"its config.json {named}; use a checkpoint that can be run"
    if (directory / "adapter_config.json").exists():
        return "it holds an adapter alone; merge it into its base model and save that"
    for inside in PARTS:
        if (directory / inside).is_dir():
            return f"it has no config.json; name its folder {inside}"
    if (directory / "params").is_dir() or (directory / "_METADATA").is_file():
        return (
            "it holds parameters of JAX; convert them with openpi's convert_jax_model_to_pytorch.py"
            " and name what that writes"
        )
    return "it has no config.json; copy the whole checkpoint, or name the folder that holds it"


def open_policy(directory: Path) -> Opened:
    """Reads the records of a policy directory of any family and maps its weights.

    Raises:
        CheckpointError: no family knows it, or a file is missing or does not fit the model.
        ConfigError: a key is missing, unknown or of the wrong type.
    """
    family = family_of(directory)
    records = family.read(directory)
    maps = records.state_map, records.action_map
    check_parts(records.config, *maps, records.processing, str(directory))
    return Opened(
        family, records, family.weights(directory, records.config), family.file(directory)
    )


def read_policy(
    directory: Path, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> PolicyFiles:
    """A policy directory of any family in memory, as the reference model runs it.

    Raises:
        As :func:`open_policy`, or CheckpointError for weights that are not finite.
    """
    opened = open_policy(directory)
    with torch.device("meta"):
        network = VLA(opened.records.config)
    tensors = {name: opened.weights(name).to(device, dtype) for name in network.state_dict()}
    check_finite(tensors, opened.file)
    network.load_state_dict(tensors, assign=True)
    parts = {one.name: getattr(opened.records, one.name) for one in fields(opened.records)}
    del parts["config"]
    return PolicyFiles(network.eval(), **parts)
