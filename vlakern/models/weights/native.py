"""The native policy directory: config.json, model.safetensors, stats.json, tokenizer.json."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from vlakern.errors import CheckpointError, ConfigError
from vlakern.files import atomic_directory
from vlakern.models.config import VLAConfig
from vlakern.models.processing import Processing, SlotMode
from vlakern.models.tokenizer import TextTokenizer, tokenizer_file
from vlakern.models.vla import VLA
from vlakern.models.weights.weights_file import (
    WEIGHTS,
    check_finite,
    check_tensors,
    open_file,
    open_tensors,
)
from vlakern.records import from_dict, to_dict
from vlakern.space import ActionSpace, Embodiment, Normalizer, SlotMap, VectorStats
from vlakern.space.normalize import Mode
from vlakern.untrusted import read_json

__all__ = [
    "WEIGHTS",
    "PolicyFiles",
    "PolicyRecords",
    "Processing",
    "SlotMode",
    "check_parts",
    "check_target",
    "load_weights",
    "make_space",
    "open_weights",
    "read",
    "read_records",
    "write",
]

FAMILY = "vlakern"
FORMAT = 2
LEAST_OF_LAYER = 8  # tensors


@dataclass(frozen=True)
class PolicyConfig:
    """The content of ``config.json``."""

    family: Literal["vlakern"]
    format: int
    model: VLAConfig
    embodiment: Embodiment
    state_map: SlotMap
    action_map: SlotMap
    processing: Processing


@dataclass(frozen=True)
class PolicyRecords:
    """A policy directory in memory, but for the weights."""

    config: VLAConfig
    embodiment: Embodiment
    state_map: SlotMap
    action_map: SlotMap
    processing: Processing
    state_stats: VectorStats
    action_stats: VectorStats
    tokenizer: TextTokenizer

    @property
    def space(self) -> ActionSpace:
        """The way between the robot's numbers and the model's, checked."""
        return make_space(
            self.embodiment,
            self.state_map,
            self.action_map,
            self.processing,
            self.state_stats,
            self.action_stats,
        )


@dataclass(frozen=True)
class PolicyFiles:
    """A policy directory in memory."""

    model: VLA
    embodiment: Embodiment
    state_map: SlotMap
    action_map: SlotMap
    processing: Processing
    state_stats: VectorStats
    action_stats: VectorStats
    tokenizer: TextTokenizer

    @property
    def records(self) -> PolicyRecords:
        """Everything but the weights."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return PolicyRecords(parts.pop("model").config, **parts)

    @property
    def space(self) -> ActionSpace:
        """The way between the robot's numbers and the model's, checked."""
        return self.records.space


def make_space(
    robot: Embodiment,
    state_map: SlotMap,
    action_map: SlotMap,
    processing: Processing,
    state_stats: VectorStats,
    action_stats: VectorStats,
) -> ActionSpace:
    """The action space of a policy's records.

    Raises:
        ConfigError: as :class:`vlakern.space.ActionSpace`, or an exception for an unknown slot.
    """
    p = processing
    state_modes = _modes(p.state, p.state_slots, state_map, "processing.state_slots")
    action_modes = _modes(p.action, p.action_slots, action_map, "processing.action_slots")
    return ActionSpace(
        robot,
        state_map,
        action_map,
        p.frame,
        Normalizer("state", state_modes, state_stats, p.epsilon),
        Normalizer("action", action_modes, action_stats, p.epsilon),
        p.relative,
    )


def _modes(
    default: Mode, exceptions: tuple[SlotMode, ...], slots: SlotMap, where: str
) -> tuple[Mode, ...]:
    modes: list[Mode] = [default] * slots.width
    for one in exceptions:
        slot = slots.slot(one.slot, where)
        for index in range(slot.start, slot.stop):
            modes[index] = one.mode
    return tuple(modes)


def write(directory: Path, files: PolicyFiles, dtype: torch.dtype | None = torch.bfloat16) -> None:
    """Writes the directory in one step; an older one stays until the new one is on disk.

    Args:
        dtype: of the weights in the file; None keeps each as it is.

    Raises:
        CheckpointError: ``directory`` is something else than a policy directory, a weight is not
            finite, or the disk takes no more.
        ConfigError: the parts contradict each other.
    """
    model = files.model.config
    check_target(directory)
    check_parts(model, files.state_map, files.action_map, files.processing, str(directory))
    _ = files.space  # raises where the records contradict each other
    config = PolicyConfig(
        FAMILY,
        FORMAT,
        model,
        files.embodiment,
        files.state_map,
        files.action_map,
        files.processing,
    )
    named = {
        "state": replace(files.state_stats, names=files.state_map.names()),
        "action": replace(files.action_stats, names=files.action_map.names()),
    }
    stats = {"frame": files.processing.frame, **{key: one.to_json() for key, one in named.items()}}
    weights = {k: _stored(v.detach(), dtype) for k, v in files.model.state_dict().items()}
    check_finite(weights, directory)
    with atomic_directory(directory) as temporary:
        (temporary / "config.json").write_text(json.dumps(to_dict(config), indent=2) + "\n")
        (temporary / "stats.json").write_text(json.dumps(stats, indent=2) + "\n")
        (temporary / files.tokenizer.file).write_bytes(files.tokenizer.to_bytes())
        try:
            save_file(weights, temporary / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:
            raise CheckpointError(
                f"{directory} cannot be written ({error}); the policy there is as it was"
            ) from error
        # safetensors creates files for their owner alone; the directory decides who reads a policy.
        (temporary / WEIGHTS).chmod(0o644)


def _stored(weight: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """A tensor as the file takes it; without a dtype no copy is made of what lies well."""
    return weight.contiguous() if dtype is None else weight.to("cpu", dtype).clone()


def read(directory: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> PolicyFiles:
    """Reads and checks a policy directory.

    Raises:
        CheckpointError: a file is missing, truncated or does not fit the model.
        ConfigError: a key is missing, unknown or of the wrong type.
    """
    records = read_records(directory)
    _check_count(records.config, len(open_tensors(directory / WEIGHTS).infos), directory / WEIGHTS)
    with torch.device("meta"):
        network = VLA(records.config)
    load_weights(network, directory / WEIGHTS, dtype, device)
    parts = {field.name: getattr(records, field.name) for field in fields(records)}
    del parts["config"]
    return PolicyFiles(network.eval(), **parts)


def read_records(directory: Path) -> PolicyRecords:
    """Reads and checks everything but the weights.

    Raises:
        As :func:`read`.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory; expected a policy directory")
    config = _config(directory / "config.json")
    model, state_map, action_map = config.model, config.state_map, config.action_map
    check_parts(model, state_map, action_map, config.processing, "config.json")
    stats = _json(directory / "stats.json")
    if not isinstance(stats, dict) or set(stats) != {"frame", "state", "action"}:
        raise ConfigError("stats.json: expected an object with the keys frame, state and action")
    if stats["frame"] != config.processing.frame:
        raise ConfigError(
            f"stats.json: the statistics are of actions in frame {stats['frame']!r}, config.json"
            f" says {config.processing.frame!r}; numbers of one frame mean nothing in another"
        )
    state_stats = _stats(stats, "state", model.state_dim)
    action_stats = _stats(stats, "action", model.action_dim)
    parts = (config.embodiment, state_map, action_map, config.processing, state_stats, action_stats)
    make_space(*parts)
    tokenizer = TextTokenizer.from_file(tokenizer_file(directory), model.vocab_size)
    return PolicyRecords(model, *parts, tokenizer)


def check_target(directory: Path) -> None:
    """Refuses to replace anything but a policy directory, an empty one or nothing.

    Raises:
        CheckpointError: naming the directory.
    """
    if not directory.exists() or (directory / "config.json").is_file():
        return
    if not directory.is_dir() or any(directory.iterdir()):
        raise CheckpointError(
            f"{directory} exists and is not a policy directory; choose another one, because writing"
            " would delete it"
        )


def check_parts(
    model: VLAConfig, state_map: SlotMap, action_map: SlotMap, processing: Processing, at: str
) -> None:
    """Checks what the records of a policy say about the model.

    Raises:
        ConfigError: naming the key below ``at``.
    """
    for key, slots, width in (
        ("state_map", state_map, model.state_dim),
        ("action_map", action_map, model.action_dim),
    ):
        if slots.width != width:
            raise ConfigError(
                f"{at}.{key} is {slots.name!r} with {slots.width} indices, the model has {width}"
            )
    if not 1 <= processing.execute <= model.chunk:
        raise ConfigError(
            f"{at}.processing.execute is {processing.execute}, expected 1 to the chunk length"
            f" {model.chunk}"
        )


def load_weights(model: nn.Module, path: Path, dtype: torch.dtype, device: str) -> None:
    """Fills ``model``, which may be on the meta device, from one safetensors file.

    Every name and shape is checked against the model before anything is allocated.

    Raises:
        CheckpointError: naming a tensor that is missing, unknown, misshapen or not finite.
    """
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    get = open_file(path, expected)
    tensors = {name: get(name).to(device, dtype) for name in expected}
    check_finite(tensors, path)
    model.load_state_dict(tensors, assign=True)


def open_weights(config: VLAConfig, path: Path) -> Callable[[str], torch.Tensor]:
    """The weights of a model by name, as they are in the file, which is mapped and not read.

    Raises:
        CheckpointError: naming a tensor that is missing, unknown or misshapen.
    """
    found = open_tensors(path)
    _check_count(config, len(found.infos), path)
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in VLA(config).state_dict().items()}
    check_tensors(found, shapes)
    return found


def _check_count(config: VLAConfig, tensors: int, path: Path) -> None:
    """Refuses a config of many more layers than the file can hold before they are built."""
    layers = config.mot.layers + config.vision.layers
    if layers * LEAST_OF_LAYER > tensors:
        raise CheckpointError(
            f"{path} holds {tensors} tensors, too few for the {layers} layers of config.json; it"
            " was written for another model"
        )


def _config(path: Path) -> PolicyConfig:
    values = _json(path)
    # Asked first: a newer format may have keys that this version would call unknown.
    if isinstance(values, dict) and values.get("format", FORMAT) != FORMAT:
        raise ConfigError(
            f"config.json.format is {values['format']!r}, this version reads {FORMAT}; train the"
            " policy again or use the version of vlakern that wrote it"
        )
    return from_dict(PolicyConfig, values, "config.json")


def _stats(stats: dict[str, Any], key: str, width: int) -> VectorStats:
    found = VectorStats.from_json(stats[key], f"stats.json.{key}")
    if not found.names:
        raise ConfigError(
            f"stats.json.{key}: names are missing; whose statistics these are is lost"
        )
    _check_width(found, width, f"stats.json.{key}")
    return found


def _check_width(stats: VectorStats, width: int, what: str) -> None:
    if stats.width != width:
        raise ConfigError(f"{what} has {stats.width} slots, the model's config says {width}")


def _json(path: Path) -> Any:
    return read_json(path, needed="expected a policy directory")
