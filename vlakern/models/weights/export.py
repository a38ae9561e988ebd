"""From any known policy directory of pi0, pi0.5 or SmolVLA back to LeRobot's files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vlakern.errors import ConfigError
from vlakern.files import atomic_directory
from vlakern.models.config import VLAConfig
from vlakern.models.weights.convert import check_new
from vlakern.models.weights.families import Opened, open_policy
from vlakern.models.weights.lerobot import ACTION, IMAGES, STATE, TOKENIZERS
from vlakern.models.weights.lerobot_processors import MODES, POST, PRE, STATE_WORDS
from vlakern.models.weights.names import Table
from vlakern.models.weights.native import PolicyRecords
from vlakern.models.weights.pi import pi_table
from vlakern.models.weights.smolvla import smolvla_table
from vlakern.models.weights.weights_file import WEIGHTS
from vlakern.space.vector_stats import FIELDS, VectorStats

__all__ = ["kind_of", "source_weights", "to_lerobot"]

NAMES = {mode: name for name, mode in MODES.items()}
HEAD = "model.paligemma_with_expert.paligemma.lm_head.weight"
DEAD_HEAD = "model.paligemma_with_expert.gemma_expert.lm_head.weight"
WORDS = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"


def kind_of(config: VLAConfig) -> str:
    """LeRobot's name of what such a network is.

    Raises:
        ConfigError: it is none of the three.
    """
    if config.vision.connector == "linear" and config.state_encoder == "linear":
        if config.state == "words" and config.mot.action.adaptive:
            return "pi05"
        if config.state == "semantic":
            return "smolvla"
        if config.state == "action" and config.mot.activation == "gelu_tanh":
            return "pi0"
    raise ConfigError(
        "the network is not of the kind of pi0, pi0.5 or SmolVLA; LeRobot has no policy that runs"
        " it"
    )


def source_weights(
    config: VLAConfig, weights: Callable[[str], Tensor], seen: Callable[[str], None]
) -> dict[str, Tensor]:
    """LeRobot's tensors by its names, every fold undone."""
    kind = kind_of(config)
    table: Table = smolvla_table(config) if kind == "smolvla" else pi_table(config)
    made: dict[str, Tensor] = {}
    for rule in table.rules:
        for native, sources in rule.each():
            weight = weights(native)
            fold = rule.fold(tuple(weight.shape)) if callable(rule.fold) else rule.fold
            parts = fold.undo(weight)
            made |= {
                f"model.{name}": part.contiguous()
                for name, part in zip(sources, parts, strict=True)
            }
            seen(native)
    if kind == "smolvla":
        # LeRobot's loader wants every name; nothing is ever predicted with these.
        size = config.vocab_size, config.mot.semantic.hidden
        made["model.vlm_with_expert.vlm.lm_head.weight"] = torch.zeros(size, dtype=torch.bfloat16)
        return made
    # Tied: its loader makes the embedding of the head.
    made[HEAD] = made.pop(WORDS)
    size = config.vocab_size, config.mot.action.hidden
    made[DEAD_HEAD] = torch.zeros(size, dtype=torch.bfloat16)
    return made


def to_lerobot(
    source: Path, target: Path, seen: Callable[[str], None] = lambda name: None
) -> Opened:
    """Writes LeRobot's policy directory.

    Raises:
        CheckpointError, ConfigError: ``source`` cannot be read, ``target`` is there, or the policy
            does what LeRobot's files cannot say.
    """
    check_new(target)
    opened = open_policy(source)
    records = opened.records
    config, pre, post = _config(records), _preprocessor(records), _postprocessor(records)
    weights = source_weights(records.config, opened.weights, seen)
    with atomic_directory(target) as temporary:
        for name, content in (("config.json", config), (PRE, pre), (POST, post)):
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n")
        stats = {
            f"{key}.{name}": values
            for key, one, width in (
                (STATE, records.state_stats, records.embodiment.state_width),
                (ACTION, records.action_stats, records.embodiment.action_width),
            )
            for name, values in _stats(one, width).items()
        }
        for content in (pre, post):
            for step in content["steps"]:
                if "state_file" in step:
                    save_file(stats, temporary / step["state_file"])
        save_file(weights, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / records.tokenizer.file).write_bytes(records.tokenizer.to_bytes())
        for entry in temporary.iterdir():
            entry.chmod(0o644)
    return opened


def _stats(stats: VectorStats, width: int) -> dict[str, Tensor]:
    return {
        name: torch.tensor(getattr(stats, name)[:width], dtype=torch.float32) for name in FIELDS
    }


def _modes(records: PolicyRecords) -> dict[str, str]:
    p = records.processing
    for what, found, wanted in (
        ("epsilon", p.epsilon, "lerobot"),
        ("frame", p.frame, "native"),
        ("state_slots", p.state_slots, ()),
        ("action_slots", p.action_slots, ()),
    ):
        if found != wanted:
            raise ConfigError(
                f"processing.{what} is {found!r}, LeRobot's processors only have {wanted!r} and"
                " would give other actions; keep the native directory"
            )
    for mode in (p.state, p.action):
        if mode not in NAMES:
            raise ConfigError(f"processing normalises by {mode}, which LeRobot does not have")
    return {"VISUAL": "IDENTITY", "STATE": NAMES[p.state], "ACTION": NAMES[p.action]}


def _features(records: PolicyRecords) -> tuple[dict[str, Any], dict[str, Any]]:
    side, robot = records.config.vision.image_size, records.embodiment
    image = {"type": "VISUAL", "shape": [3, side, side]}
    taken: dict[str, Any] = {f"{IMAGES}{view}": image for view in robot.views}
    taken[STATE] = {"type": "STATE", "shape": [robot.state_width]}
    return taken, {ACTION: {"type": "ACTION", "shape": [robot.action_width]}}


def _config(records: PolicyRecords) -> dict[str, Any]:
    config, kind = records.config, kind_of(records.config)
    taken, given = _features(records)
    side = config.vision.image_size
    found: dict[str, Any] = {
        "type": kind,
        "n_obs_steps": 1,
        "input_features": taken,
        "output_features": given,
        "normalization_mapping": _modes(records),
        "chunk_size": config.chunk,
        "n_action_steps": records.processing.execute,
        "max_state_dim": config.state_dim,
        "max_action_dim": config.action_dim,
        "min_period": config.time.min_period,
        "max_period": config.time.max_period,
        "tokenizer_max_length": records.processing.prompt.most_tokens,
    }
    if kind == "smolvla":
        mot = config.mot
        return found | {
            "num_steps": config.steps,
            "resize_imgs_with_padding": [side, side],
            "vlm_model_name": TOKENIZERS[kind],
            "num_vlm_layers": mot.layers,
            "self_attn_every_n_layers": 2,
            "attention_mode": "cross_attn" if mot.cross_every else "self_attn",
            "expert_width_multiplier": mot.action.hidden / mot.semantic.hidden,
        }
    return found | {
        "num_inference_steps": config.steps,
        "image_resolution": [side, side],
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
    }


def _is_recent(records: PolicyRecords) -> bool:
    """Whether the policy is of the LeRobot that has relative actions, or of an earlier one.

    Raises:
        ConfigError: it does some things as the one does and some as the other.
    """
    p, kind = records.processing, kind_of(records.config)
    signs = {"relative actions": True} if p.relative else {}
    if kind == "smolvla":
        return bool(p.relative)
    signs[f"image.pad = {p.image.pad}"] = p.image.pad == 0
    if kind == "pi05":
        signs[f"prompt.numbers = {p.prompt.numbers!r}"] = p.prompt.numbers == "robot"
    if (p.image.fit, p.image.filter) != ("openpi", "bilinear") or p.image.pad not in (0, -255):
        raise ConfigError(
            f"processing.image is {p.image}, LeRobot's pi policies only have fit 'openpi' with the"
            " filter 'bilinear' and pad 0 or -255"
        )
    if len(set(signs.values())) != 1:
        raise ConfigError(
            f"processing has {' and '.join(signs)}, of which no version of LeRobot has all"
        )
    return next(iter(signs.values()))


def _preprocessor(records: PolicyRecords) -> dict[str, Any]:
    p, kind = records.processing, kind_of(records.config)
    taken, given = _features(records)
    names = [
        f"{'number' if i in p.relative else 'fixed'}_{i}"
        for i in range(records.embodiment.action_width)
    ]
    relative = {"enabled": bool(p.relative), "exclude_joints": ["fixed"], "action_names": names}
    steps = [
        ("rename_observations_processor", {"rename_map": _renames(records)}),
        ("to_batch_processor", {}),
    ]
    recent = _is_recent(records)
    if kind == "pi05":
        if recent:
            steps.append(("relative_actions_processor", relative))
        steps.append(("normalizer_processor", _normaliser(records, {**taken, **given})))
        steps.append((STATE_WORDS, {}))
    else:
        steps.append((f"{kind}_new_line_processor", {}))
    steps.append(("tokenizer_processor", _tokenizer(records, kind)))
    steps.append(("device_processor", {"device": "cpu", "float_dtype": None}))
    if kind != "pi05":
        if recent:
            steps.append(("relative_actions_processor", relative))
        steps.append(("normalizer_processor", _normaliser(records, {**taken, **given})))
    return _pipeline("policy_preprocessor", steps)


def _postprocessor(records: PolicyRecords) -> dict[str, Any]:
    steps: list[tuple[str, dict[str, Any]]] = [
        ("unnormalizer_processor", _normaliser(records, _features(records)[1]))
    ]
    if _is_recent(records):
        relative = bool(records.processing.relative)
        steps.append(("absolute_actions_processor", {"enabled": relative}))
    steps.append(("device_processor", {"device": "cpu", "float_dtype": None}))
    return _pipeline("policy_postprocessor", steps)


def _renames(records: PolicyRecords) -> dict[str, str]:
    return {f"{IMAGES}{c.called}": f"{IMAGES}{c.view}" for c in records.processing.cameras}


def _tokenizer(records: PolicyRecords, kind: str) -> dict[str, Any]:
    return {
        "max_length": records.processing.prompt.most_tokens,
        "task_key": "task",
        "padding_side": "right",
        "padding": "longest" if kind == "smolvla" else "max_length",
        "truncation": True,
        "tokenizer_name": TOKENIZERS[kind],
    }


def _normaliser(records: PolicyRecords, features: dict[str, Any]) -> dict[str, Any]:
    return {"eps": 1e-8, "features": features, "norm_map": _modes(records)}


def _pipeline(name: str, steps: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    made = []
    for i, (step, config) in enumerate(steps):
        entry: dict[str, Any] = {"registry_name": step, "config": config}
        if step.endswith("normalizer_processor"):
            entry["state_file"] = f"{name}_step_{i}_{step}.safetensors"
        made.append(entry)
    return {"name": name, "steps": made}
