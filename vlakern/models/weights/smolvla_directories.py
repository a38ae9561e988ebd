"""Directories of SmolVLA, as LeRobot writes them."""

from dataclasses import replace
from pathlib import Path

from vlakern.errors import ConfigError
from vlakern.models.config import VLAConfig
from vlakern.models.processing import ImageRule
from vlakern.models.weights.family import Family, native_shapes, peek
from vlakern.models.weights.lerobot import lerobot_records, read_settings, refuse_aloha
from vlakern.models.weights.mixed import check_tensors
from vlakern.models.weights.names import Folded, fold_weights
from vlakern.models.weights.native import PolicyRecords
from vlakern.models.weights.smolvla import smolvla_config, smolvla_table
from vlakern.models.weights.weights_file import open_directory

__all__ = ["LEROBOT_SMOLVLA"]

# What a checkpoint may say otherwise than the published one, and what is run here.
ONLY = {"add_image_special_tokens": False, "use_cache": True}


def _weights(directory: Path, config: VLAConfig) -> Folded:
    return fold_weights(smolvla_table(config), native_shapes(config), open_directory(directory))


def _read(directory: Path) -> PolicyRecords:
    settings = read_settings(directory)
    tensors = open_directory(directory)
    check_tensors([settings.kind], f"{settings.where}.type", tensors.shapes, tensors.where)
    config = smolvla_config(tensors.shapes, str(tensors.where))
    refuse_aloha(settings)
    for key, wanted in ONLY.items():
        if settings.get(key, bool, wanted) != wanted:
            raise ConfigError(
                f"{settings.where}.{key} is {not wanted}, only {wanted} is supported; use a"
                " checkpoint without it"
            )
    crossing = "cross" in settings.get("attention_mode", str, "cross_attn")
    every = settings.get("self_attn_every_n_layers", int, 2)
    if crossing != bool(config.mot.cross_every) or (crossing and every != 2):
        raise ConfigError(
            f"{settings.where}: attention_mode and self_attn_every_n_layers = {every} say otherwise"
            " than the expert's tensors; only cross_attn with 2 and self_attn are supported"
        )
    side = config.vision.image_size
    if settings.get("resize_imgs_with_padding", list, [side, side]) != [side, side]:
        raise ConfigError(
            f"{settings.where}.resize_imgs_with_padding is not [{side}, {side}], for which the"
            " tower has positions; use the checkpoint's own resolution"
        )
    time = replace(
        config.time,
        min_period=settings.get("min_period", float, 4e-3),
        max_period=settings.get("max_period", float, 4.0),
    )
    config = replace(
        config,
        chunk=settings.get("chunk_size", int, 50),
        steps=settings.get("num_steps", int, 10),
        time=time,
    )
    execute = settings.get("n_action_steps", int, config.chunk)
    image = ImageRule(fit="lerobot", filter="bilinear")
    return lerobot_records(directory, settings, config, "", image, execute)


LEROBOT_SMOLVLA = Family(
    "LeRobot SmolVLA",
    'config.json with "type": "smolvla"',
    lambda directory: peek(directory / "config.json").get("type") == "smolvla",
    _read,
    _weights,
)
