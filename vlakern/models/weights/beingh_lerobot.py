"""Directories of Being-H0.5 as LeRobot's port writes them (huggingface/lerobot, pull request 4193).

The release's config.json lies inside LeRobot's, as ``author_config``. The vision tower has the
names of transformers' InternVL, everything else the release's. A robot has named parts, each with
its place in the unified vectors; the numbers of state and command are those parts one after the
other, and grippers and control modes are 1 above one half and 0 otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vlakern.errors import ConfigError
from vlakern.models.config import VLAConfig
from vlakern.models.processing import Processing, SlotMode
from vlakern.models.tokenizer import TextTokenizer, tokenizer_file
from vlakern.models.weights._stacks import both
from vlakern.models.weights.beingh import (
    CLASS_TOKEN,
    beingh_config,
    beingh_table,
    position_fold,
)
from vlakern.models.weights.beingh_directories import IMAGE
from vlakern.models.weights.beingh_prompt import beingh_prompt
from vlakern.models.weights.beingh_stats import unified_stats
from vlakern.models.weights.family import Family, native_shapes, peek
from vlakern.models.weights.lerobot import FRAMES_PER_SECOND, IMAGES
from vlakern.models.weights.lerobot_processors import (
    EPSILON,
    MODES,
    POST,
    PRE,
    read_floats,
)
from vlakern.models.weights.mixed import check_tensors
from vlakern.models.weights.names import Folded, Rule, fold_weights, joined
from vlakern.models.weights.native import PolicyRecords
from vlakern.models.weights.statistics import inside, read_object
from vlakern.models.weights.weights_file import open_directory
from vlakern.space import Embodiment, Field, Slot, SlotMap, VectorStats

__all__ = ["LEROBOT_BEINGH", "port_rules"]

TOWER = "vit_model.encoder.layer.{n}."
WIDTH = 200
STATE = "observation.state."
NORMALISE, UNNORMALISE = "normalizer_processor", "unnormalizer_processor"
PACK, WORDS, UNPACK = "being_h05_semantic_pack", "being_h05_tokenizer", "being_h05_semantic_unpack"
# Its commands, in their order; which are 0 or 1. The post-processor's file does not say them.
ACTION = {
    "eef_position": (0, 3),
    "eef_rotation": (3, 6),
    "gripper_position": (18, 19),
    "base_motion": (70, 74),
    "control_mode": (74, 75),
}
BINARY = ("gripper_position", "control_mode")
BINARY_STEP = "being_h05_binary_action"
NAMES = {"STATE": STATE, "ACTION": "action."}
OURS = {"QUANTILES": "q99", "MEAN_STD": "mean_std", "MIN_MAX": "min_max"}
KNOWN = {
    PRE: (
        "render_messages_processor",
        "to_batch_processor",
        NORMALISE,
        PACK,
        "being_h05_messages",
        WORDS,
        "device_processor",
    ),
    POST: (UNPACK, UNNORMALISE, "device_processor"),
}


@dataclass(frozen=True)
class _Steps:
    """A processor file: configurations and files by step, and how many keep binary actions."""

    path: Path
    config: dict[str, dict[str, Any]]
    file: dict[str, Any]
    around: int


def port_rules(config: VLAConfig, positions: int) -> list[Rule]:
    """The vision tower by transformers' names; see :func:`beingh_table` for ``positions``."""
    vision, block = config.vision, "vision.blocks.{n}."
    fold = position_fold(positions, vision.grid)
    rules = [
        *both("vision.patch", "vit_model.embeddings.patch_embeddings.projection"),
        Rule("vision.class_token", ("vit_model.embeddings.cls_token",), CLASS_TOKEN),
        Rule("vision.position", ("vit_model.embeddings.position_embeddings",), fold),
    ]
    parts = {"proj": "attention.projection_layer", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    parts |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
    for ours, theirs in parts.items():
        rules += both(f"{block}{ours}", f"{TOWER}{theirs}", layers=vision.layers)
    for i in (1, 2):
        rules.append(Rule(f"{block}scale{i}", (f"{TOWER}lambda_{i}",), layers=vision.layers))
    for part in ("weight", "bias"):
        sources = tuple(f"{TOWER}attention.{one}_proj.{part}" for one in "qkv")
        rules.append(Rule(f"{block}qkv.{part}", sources, joined(3), vision.layers))
    return rules


def _weights(directory: Path, config: VLAConfig) -> Folded:
    path = directory / "config.json"
    positions = _network(read_object(path), {}, path)[1]
    table = beingh_table(config, positions, port_rules(config, positions))
    tensors = open_directory(directory)
    check_tensors(["being_h05"], f"{path}.type", tensors.shapes, tensors.where)
    return fold_weights(table, native_shapes(config), tensors)


def _network(
    values: Mapping[str, Any], words: Mapping[str, Any], path: Path
) -> tuple[VLAConfig, int]:
    author = values.get("author_config")
    if not isinstance(author, dict):
        raise ConfigError(
            f"{path}.author_config is {str(author)[:40]!r}, expected the release's config.json;"
            " copy the checkpoint's config again"
        )
    author = author | {"system_message": words.get("system_message", "")}
    if "num_inference_steps" in values:
        author["num_inference_timesteps"] = values["num_inference_steps"]
    config, positions = beingh_config(author, f"{path}.author_config")
    for key, wanted in (("chunk_size", config.chunk), ("image_size", config.vision.image_size)):
        if values.get(key, wanted) != wanted:
            raise ConfigError(
                f"{path}.{key} is {values[key]!r}, author_config says {wanted}; copy the"
                " checkpoint's config again"
            )
    return config, positions


def _read(directory: Path) -> PolicyRecords:
    path = directory / "config.json"
    values = read_object(path)
    pre, post = _steps(directory / PRE), _steps(directory / POST)
    where = f"{directory / PRE}: step {PACK!r}"
    pack, words = pre.config[PACK], pre.config[WORDS]
    config, _ = _network(values, words, path)
    template = str(pack.get("prompt_template"))
    rule = beingh_prompt("", config.chunk, template)[1]
    state = _parts(pack.get("state_slots"), f"{where}.state_slots")
    features = values.get("input_features")
    told = [name.removeprefix(STATE) for name in features] if isinstance(features, dict) else []
    state = {name: span for name, span in state.items() if name in told}
    if not state:
        raise ConfigError(f"{path}.input_features has no {STATE}NAME of {where}.state_slots")
    if _parts(pack.get("action_slots"), f"{where}.action_slots") != ACTION:
        raise ConfigError(f"{where}.action_slots is not what {UNPACK!r} takes apart, {ACTION}")
    views = tuple(str(name).removeprefix(IMAGES) for name in pack.get("image_keys") or ())
    robot = Embodiment(
        name="lerobot-being_h05",
        slot_map="lerobot-being_h05",
        control_rate=FRAMES_PER_SECOND,
        views=views,
        state_width=sum(stop - start for start, stop in state.values()),
        action_width=sum(stop - start for start, stop in ACTION.values()),
        state=_fields(state),
        action=_fields(ACTION),
        description="Numbers of the named parts, in the checkpoint's own units.",
    )
    maps = [_slots(parts) for parts in (state, ACTION)]
    seen = _normalised(pre, NORMALISE, "STATE")
    done = _normalised(post, UNNORMALISE, "ACTION")
    return PolicyRecords(
        config=config,
        embodiment=robot,
        state_map=maps[0],
        action_map=maps[1],
        processing=Processing(
            state=MODES[seen[0]],
            action=MODES[done[0]],
            action_slots=tuple(SlotMode(name, "threshold") for name in BINARY),
            execute=_execute(values, config.chunk, path),
            epsilon="lerobot",
            image=IMAGE,
            prompt=rule,
        ),
        state_stats=_stats("state", seen, state, maps[0], path),
        action_stats=_stats("action", done, ACTION, maps[1], path),
        tokenizer=TextTokenizer.from_file(
            tokenizer_file(directory), config.vocab_size, str(words.get("tokenizer_name") or "")
        ),
    )


def _normalised(steps: _Steps, step: str, kind: str) -> tuple[str, dict[str, list[float]]]:
    """The mode of a step, and statistics by the name of the feature and theirs."""
    config, where = steps.config[step], f"{steps.path}: step {step!r}"
    mode = (config.get("norm_map") or {}).get(kind, "IDENTITY")
    if mode not in MODES or config.get("eps", EPSILON) != EPSILON:
        raise ConfigError(
            f"{where} has {kind} {mode!r} and eps {config.get('eps')!r}, expected one of"
            f" {', '.join(MODES)} and {EPSILON:g}"
        )
    if mode == "IDENTITY":
        return mode, {}
    if kind == "ACTION" and steps.around != 2:
        raise ConfigError(
            f"{where} normalises actions without {BINARY_STEP!r} before and after it; copy the"
            " whole checkpoint"
        )
    file = inside(steps.path.parent, steps.file.get(step), f"{where}.state_file")
    return mode, read_floats(file, NAMES[kind])


def _stats(
    part: Literal["state", "action"],
    found: tuple[str, dict[str, list[float]]],
    parts: Mapping[str, tuple[int, int]],
    slots: SlotMap,
    path: Path,
) -> VectorStats:
    """Statistics of the unified vector; grippers and control modes have none."""
    mode, values = found
    if mode == "IDENTITY":
        return VectorStats.units(slots.names())
    given: dict[str, dict[str, list[float]]] = {}
    for field in _fields(parts):
        feature, columns = (f"{STATE}{field.slot}.", slice(None))
        if part == "action":
            feature, columns = NAMES["ACTION"], slice(*field.native)
        given[field.slot] = {
            name.removeprefix(feature): column[columns]
            for name, column in values.items()
            if name.startswith(feature)
        }
    modes = dict.fromkeys(parts, OURS[mode])
    if part == "action":
        modes |= dict.fromkeys(BINARY, "binary")
    return unified_stats({part: given}, part, parts, modes, slots, str(path.parent))


def _execute(values: Mapping[str, Any], chunk: int, path: Path) -> int:
    found = values.get("n_action_steps", chunk)
    if type(found) is not int:
        raise ConfigError(f"{path}.n_action_steps is {str(found)[:40]!r}, expected a whole number")
    return found


def _steps(path: Path) -> _Steps:
    """The steps of a processor file, checked."""
    steps = read_object(path).get("steps")
    found = _Steps(path, {}, {}, 0)
    for step in steps if isinstance(steps, list) else ():
        step = step if isinstance(step, dict) else {}
        name = str(step.get("registry_name"))
        if name == BINARY_STEP:
            found = replace(found, around=found.around + 1)
            continue
        if name not in KNOWN[path.name] or name in found.config:
            raise ConfigError(
                f"{path}: step {name!r} is there twice or not known; known are"
                f" {', '.join(KNOWN[path.name])}"
            )
        found.config[name] = step.get("config") or {}
        found.file[name] = step.get("state_file")
    needed = (PACK, WORDS, NORMALISE) if path.name == PRE else (UNPACK, UNNORMALISE)
    for name in needed:
        if not isinstance(found.config.get(name), dict):
            raise ConfigError(
                f"{path}: step {name!r} is missing; expected the files that LeRobot's port wrote"
                " from 2026-08-11 on"
            )
    return found


def _parts(given: Any, where: str) -> dict[str, tuple[int, int]]:
    """Names and places ``[start, stop)`` in the unified vector, none twice."""
    found: dict[str, tuple[int, int]] = {}
    taken: set[int] = set()
    for name, span in given.items() if isinstance(given, dict) else ():
        pair = span if isinstance(span, list) and len(span) == 2 else [-1, -1]
        start, stop = (one if type(one) is int else -1 for one in pair)
        if not 0 <= start < stop <= WIDTH or taken & set(range(start, stop)):
            raise ConfigError(
                f"{where}.{name} is {str(span)[:40]}, expected [start, stop] of the {WIDTH}"
                " numbers, none twice"
            )
        taken |= set(range(start, stop))
        found[str(name)] = (start, stop)
    if not found:
        raise ConfigError(f"{where} is {str(given)[:40]!r}, expected places by name")
    return found


def _fields(parts: Mapping[str, tuple[int, int]]) -> tuple[Field, ...]:
    """Each part's numbers, one after the other."""
    fields, at = [], 0
    for name, (start, stop) in parts.items():
        fields.append(Field(name, (at, at + stop - start)))
        at += stop - start
    return tuple(fields)


def _slots(parts: Mapping[str, tuple[int, int]]) -> SlotMap:
    ordered = sorted(parts.items(), key=lambda part: part[1])
    slots = tuple(Slot(name, "1", start, stop) for name, (start, stop) in ordered)
    return SlotMap("lerobot-being_h05", WIDTH, slots)


LEROBOT_BEINGH = Family(
    "LeRobot Being-H0.5",
    'config.json with "type": "being_h05"',
    lambda directory: peek(directory / "config.json").get("type") == "being_h05",
    _read,
    _weights,
)
