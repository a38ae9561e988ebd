"""Which weights train when, and where their first values come from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vlakern.errors import CheckpointError, ConfigError
from vlakern.models.config import VLAConfig
from vlakern.models.tokenizer import TextTokenizer
from vlakern.models.vla import VLA
from vlakern.models.weights.native import WEIGHTS, PolicyRecords, open_weights, read_records
from vlakern.space import SlotMap
from vlakern.train.config import Part, TrainConfig
from vlakern.train.lora import UPDATES
from vlakern.train.step import Objective

__all__ = ["Meaning", "Started", "reached", "select", "start_from", "trains"]

SEMANTIC = ("vision.", "embed_tokens.", "mot.semantic.")
# What the last layer needs for its keys and values, which is all that actions see of it.
KEYS_VALUES = ("input_norm", "k_proj", "v_proj", "k_norm")


def select(objective: Objective, part: Part) -> list[str]:
    """Makes the weights of a part trainable and freezes the others; returns their names.

    Frozen weights still pass gradients on. Weights that no loss of this run reaches are frozen in
    every part: they have no gradient that ranks could add up, and must not decay.

    Raises:
        ConfigError: nothing is left to train.
    """
    config, model = objective.config, objective.model.config
    names = []
    for name, weight in objective.named_parameters():
        own = name.removeprefix("model.")
        # The foresight head trains with the tower that it looks at.
        if own == name:
            train = part == "all"
        else:
            train = trains(own, config, part) and reached(own, config, model)
        weight.requires_grad_(train)
        names += [name] * train
    if not names:
        raise ConfigError("no weight is left to train; change train.frozen, detach or lora")
    return names


def trains(name: str, config: TrainConfig, part: Part) -> bool:
    """Whether a policy's weight belongs to what a part trains."""
    if not name.startswith(SEMANTIC):
        return True
    if config.lora.rank:
        return part == "all" and name.rpartition(".")[2] in UPDATES
    return part == "all"


def reached(name: str, config: TrainConfig, model: VLAConfig) -> bool:
    """Whether a loss of the run depends on a policy's weight."""
    template = model.prompt.template
    said = template.index("{instruction}") if config.language else -1
    if name.startswith("state_encoder."):
        return not config.detach or template.index("{state}") < said
    if name.startswith("vision."):
        spoken = template.index("{views}") < said
        return not config.detach or spoken or config.foresight > 0
    if name.startswith("embed_tokens."):
        return not config.detach or config.language > 0
    if not name.startswith("mot.semantic.") or config.language:
        return True
    if config.detach or name.startswith("mot.semantic.norm."):
        return False
    last = f"mot.semantic.layers.{model.mot.layers - 1}."
    return not name.startswith(last) or name[len(last) :].startswith(KEYS_VALUES)


@dataclass(frozen=True)
class Meaning:
    """What the rows of a model's tables mean: numbers of the robot, and words."""

    state_map: SlotMap
    action_map: SlotMap
    tokenizer: TextTokenizer


@dataclass(frozen=True)
class Started:
    """What became of a checkpoint's tensors in a new model.

    Attributes:
        loaded: names of the model's tensors that it gave, whole or in part.
        renamed: name there and name here, where they differ.
        partial: of tables whose rows were found by name, how many of how many rows were found.
        missing: the model's tensors that keep their random start.
        left_over: the checkpoint's tensors that found no place, each with the reason.
    """

    loaded: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]
    partial: dict[str, tuple[int, int]]
    missing: tuple[str, ...]
    left_over: dict[str, str]

    def lines(self) -> list[str]:
        """The report for people."""
        found = [f"loaded {len(self.loaded)} tensors, {len(self.missing)} keep their random start"]
        found += [f"renamed {old} to {new}" for old, new in self.renamed]
        found += [
            f"{name}: {n} of {all_} rows, by name" for name, (n, all_) in self.partial.items()
        ]
        found += [f"missing: {name}" for name in self.missing]
        return found + [f"left over: {name} ({why})" for name, why in self.left_over.items()]


def start_from(
    model: VLA,
    directory: Path,
    meaning: Meaning | None = None,
    rename: Mapping[str, str] | None = None,
) -> Started:
    """Fills a new model from a policy directory, as far as names and shapes agree.

    Args:
        meaning: of the new model's numbers and words. Rows of the state's and the actions' products
            and of the words' embedding are then found by name, since a robot with other slots or a
            tokenizer with other words gives the same row another meaning.
        rename: beginnings of names there, and what stands here in their place.

    Raises:
        CheckpointError: the directory is not a policy, or nothing in it fits the model.
    """
    records = read_records(directory)
    get = open_weights(records.config, directory / WEIGHTS)
    with torch.device("meta"):
        there = VLA(records.config).state_dict()
    here = model.state_dict()
    rows = _rows_by_name(records, meaning) if meaning else {}
    loaded: list[str] = []
    renamed: list[tuple[str, str]] = []
    partial: dict[str, tuple[int, int]] = {}
    left_over: dict[str, str] = {}
    for old in there:
        new = _renamed(old, rename or {})
        if new not in here:
            left_over[old] = "the model has no such tensor"
            continue
        source, target = get(old), here[new]
        index = rows.get(new)
        if index is not None and index.alike and source.shape == target.shape:
            index = None
        reason = _misfit(source, target, index)
        if reason:
            left_over[old] = reason
            continue
        with torch.no_grad():
            if index is None:
                target.copy_(source)
            else:
                partial[new] = index.fill(target, source)
        loaded.append(new)
        renamed += [(old, new)] * (old != new)
    if not loaded:
        raise CheckpointError(f"{directory}: no tensor fits the model; it is of another kind")
    missing = tuple(name for name in here if name not in loaded)
    return Started(tuple(loaded), tuple(renamed), partial, missing, left_over)


@dataclass(frozen=True)
class _Rows:
    """Rows of one table that mean the same as rows of another, along an axis.

    ``alike`` says that all of them do.
    """

    axis: int
    old: tuple[int, ...]
    new: tuple[int, ...]
    alike: bool

    def fill(self, target: Tensor, source: Tensor) -> tuple[int, int]:
        """Copies them; returns how many there are and how many the target has."""
        chosen = source.index_select(self.axis, torch.tensor(self.old, dtype=torch.int64))
        at = torch.tensor(self.new, dtype=torch.int64, device=target.device)
        target.index_copy_(self.axis, at, chosen.to(target))
        return len(self.new), target.shape[self.axis]


def _rows_by_name(records: PolicyRecords, meaning: Meaning) -> dict[str, _Rows]:
    """Where the rows of each table are in the new model."""
    state = (records.state_map.names(), meaning.state_map.names())
    action = (records.action_map.names(), meaning.action_map.names())
    words = (_words(records.tokenizer), _words(meaning.tokenizer))
    tables = {
        "state_encoder.0.weight": (1, state),
        "action_encoder.w1.weight": (1, action),
        "action_decoder.2.weight": (0, action),
        "action_decoder.2.bias": (0, action),
        "embed_tokens.weight": (0, words),
    }
    return {name: _alike(axis, *both) for name, (axis, both) in tables.items()}


def _alike(axis: int, old: Sequence[str], new: Sequence[str]) -> _Rows:
    places = {name: i for i, name in enumerate(old) if name}
    pairs = [(places[name], i) for i, name in enumerate(new) if name in places]
    return _Rows(axis, tuple(a for a, _ in pairs), tuple(b for _, b in pairs), old == new)


def _words(tokenizer: TextTokenizer) -> tuple[str, ...]:
    """The token of each id, "" where there is none."""
    content = json.loads(tokenizer.to_json())
    found = dict(content["model"]["vocab"])
    found |= {one["content"]: one["id"] for one in content["added_tokens"]}
    words = [""] * (1 + max(found.values(), default=-1))
    for word, i in found.items():
        words[i] = word
    return tuple(words)


def _renamed(name: str, rename: Mapping[str, str]) -> str:
    for old, new in rename.items():
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def _misfit(source: Tensor, target: Tensor, rows: _Rows | None) -> str:
    """Why a tensor cannot be loaded; "" if it can."""
    there, here = list(source.shape), list(target.shape)
    if rows is not None and len(there) == len(here):
        there[rows.axis] = here[rows.axis] = 0
    if there == here:
        return ""
    return f"its shape is {list(source.shape)}, the model's {list(target.shape)}"
