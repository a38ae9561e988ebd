"""Directories of pi0 and pi0.5: LeRobot's and those of openpi's PyTorch code."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlakern.errors import ConfigError
from vlakern.models.config import TimeConfig, VLAConfig
from vlakern.models.processing import ImageRule, Processing, PromptRule
from vlakern.models.tokenizer import TextTokenizer, tokenizer_file
from vlakern.models.weights.family import Family, native_shapes, peek, weights_path
from vlakern.models.weights.lerobot import (
    TOKENIZERS,
    Settings,
    is_recent,
    lerobot_records,
    read_settings,
    refuse_aloha,
    vectors,
)
from vlakern.models.weights.mixed import check_tensors
from vlakern.models.weights.names import Folded, fold_weights
from vlakern.models.weights.native import PolicyRecords
from vlakern.models.weights.norm_stats import find_norm_stats, read_norm_stats
from vlakern.models.weights.pi import pi_config, pi_table
from vlakern.models.weights.statistics import read_object
from vlakern.models.weights.weights_file import open_directory

__all__ = ["LEROBOT_PI0", "LEROBOT_PI05", "OPENPI"]

BOS = "<bos>"
# openpi's names of the cameras, in its order.
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
# Neither rate nor robot is in its files.
COMMANDS_PER_SECOND = 10.0
# The key of the images' side up to LeRobot 0.3.
RESIZED = "resize_imgs_with_padding"
# Numbers of both arms and grippers.
ALOHA = 14
CLEAN = ("strip", "underscores", "newlines")


def _weights(directory: Path, config: VLAConfig) -> Folded:
    return fold_weights(pi_table(config), native_shapes(config), open_directory(directory))


def _lerobot(directory: Path) -> PolicyRecords:
    settings = read_settings(directory)
    tensors = open_directory(directory)
    check_tensors([settings.kind], f"{settings.where}.type", tensors.shapes, tensors.where)
    config = pi_config(tensors.shapes, str(tensors.where))
    adaptive = config.mot.action.adaptive
    config = replace(
        config,
        chunk=settings.get("chunk_size", int, 50),
        steps=settings.get("num_inference_steps", int, settings.get("num_steps", int, 10)),
        time=_time(settings, config.time),
        state_dim=settings.get("max_state_dim", int, 32) if adaptive else config.state_dim,
    )
    refuse_aloha(settings)
    key = RESIZED if RESIZED in settings.values else "image_resolution"
    side = settings.get(key, list, [config.vision.image_size] * 2)
    if side != [config.vision.image_size] * 2:
        raise ConfigError(
            f"{settings.where}.{key} is {side}, the tower has positions for"
            f" {config.vision.image_size}; use the checkpoint's own resolution"
        )
    image = ImageRule("lerobot", "bilinear")
    if key != RESIZED:
        image = ImageRule("openpi", "bilinear", 0 if is_recent(directory) else -255)
    return lerobot_records(
        directory,
        settings,
        config,
        BOS,
        image,
        settings.get("n_action_steps", int, config.chunk),
    )


def _time(settings: Settings, base: TimeConfig) -> TimeConfig:
    least, most = base.min_period or 4e-3, base.max_period
    return replace(
        base,
        min_period=settings.get("min_period", float, least),
        max_period=settings.get("max_period", float, most),
    )


def _openpi(directory: Path) -> PolicyRecords:
    tensors = open_directory(directory)
    path = directory / "config.json"
    check_tensors(["pi0", "pi05"], str(path), tensors.shapes, tensors.where)
    config = pi_config(tensors.shapes, str(tensors.where))
    if not path.is_file():
        raise ConfigError(
            f'{path} is missing, so the chunk\'s length is not known; write {{"action_horizon": N}}'
            " there with the N of the training configuration"
        )
    values = read_object(path)
    chunk = values.get("action_horizon")
    if type(chunk) is not int:
        raise ConfigError(f"{path}.action_horizon is {str(chunk)[:40]!r}, expected a whole number")
    config = replace(config, chunk=chunk)
    adaptive = config.mot.action.adaptive
    stats_path = find_norm_stats(directory, values.get("asset_id"))
    widths = _widths(stats_path)
    relative = _relative(values, widths, path)
    robot, state_map, action_map = vectors(
        "openpi", widths, (config.state_dim, config.action_dim), CAMERAS, COMMANDS_PER_SECOND
    )
    mode = "quantile" if adaptive else "zscore"
    stats = read_norm_stats(stats_path, mode, state_map.names(), action_map.names())
    said = (
        ("Task: {instruction}, State: {state};\nAction: ",) if adaptive else ("{instruction}", "\n")
    )
    processing = Processing(
        state=mode,
        action=mode,
        execute=(chunk + 1) // 2,
        epsilon="openpi",
        image=ImageRule(fit="openpi"),
        relative=relative,
        prompt=PromptRule(CLEAN, parts=said, bos=BOS, most_tokens=200 if adaptive else 48),
    )
    return PolicyRecords(
        config=config,
        embodiment=robot,
        state_map=state_map,
        action_map=action_map,
        processing=processing,
        state_stats=stats[0],
        action_stats=stats[1],
        tokenizer=TextTokenizer.from_file(
            tokenizer_file(directory), config.vocab_size, TOKENIZERS["pi0"]
        ),
    )


def _relative(values: dict[str, Any], widths: tuple[int, int], path: Path) -> tuple[int, ...]:
    """Numbers of the actions that were learnt relative to the state.

    openpi's transforms are in its training configurations and not in its checkpoints. Those of
    Aloha, whose arms have 14 numbers, change both vectors unless they are told not to.

    Raises:
        ConfigError: an Aloha's config.json does not say, or says what is not supported.
    """
    if ALOHA in widths:
        for key, meaning in (
            ("adapt_to_pi", "joints with flipped signs and grippers as angles"),
            ("relative_actions", "indices of the actions that are relative to the state, or []"),
        ):
            if key not in values:
                raise ConfigError(
                    f"{path}.{key} is missing ({meaning}): {ALOHA} numbers are an Aloha's, and its"
                    " actions depend on it; write it there as the training configuration has it"
                )
    if values.get("adapt_to_pi", False) is not False:
        raise ConfigError(
            f"{path}.adapt_to_pi is {str(values['adapt_to_pi'])[:40]}: joints with flipped signs"
            " and grippers as angles around the network are not supported; use a policy that was"
            " trained without"
        )
    found = values.get("relative_actions", [])
    if not isinstance(found, list) or not all(
        type(one) is int and 0 <= one < min(widths) for one in found
    ):
        raise ConfigError(
            f"{path}.relative_actions is {str(found)[:40]}, expected indices below {min(widths)}"
        )
    return tuple(found)


def _widths(path: Path) -> tuple[int, int]:
    """How many numbers state and actions have."""
    found = read_object(path).get("norm_stats")
    lists = [found.get(key) if isinstance(found, dict) else None for key in ("state", "actions")]
    means = [one.get("mean") if isinstance(one, dict) else None for one in lists]
    widths = [len(one) if isinstance(one, list) else 0 for one in means]
    if not all(widths):
        raise ConfigError(f"{path}: norm_stats lacks the mean of state or actions")
    return widths[0], widths[1]


def _is_openpi(directory: Path) -> bool:
    config = peek(directory / "config.json")
    has_weights = weights_path(directory).exists()
    return "action_horizon" in config or (
        not config and has_weights and (directory / "assets").is_dir()
    )


def _of_type(kind: str) -> Callable[[Path], bool]:
    return lambda directory: peek(directory / "config.json").get("type") == kind


LEROBOT_PI0, LEROBOT_PI05 = (
    Family(
        f"LeRobot {kind}", f'config.json with "type": "{kind}"', _of_type(kind), _lerobot, _weights
    )
    for kind in ("pi0", "pi05")
)
OPENPI = Family(
    "openpi (PyTorch)",
    'config.json with "action_horizon", and assets/',
    _is_openpi,
    _openpi,
    _weights,
)
