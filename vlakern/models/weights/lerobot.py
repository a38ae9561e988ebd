"""LeRobot's policy directories: config.json, model.safetensors and the processor files."""

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from vlakern.errors import ConfigError
from vlakern.models.config import VLAConfig
from vlakern.models.processing import ImageRule, Processing
from vlakern.models.tokenizer import TextTokenizer, tokenizer_file
from vlakern.models.weights.lerobot_processors import PRE, Normalised, read_processors
from vlakern.models.weights.mixed import check_processors, check_width
from vlakern.models.weights.native import PolicyRecords
from vlakern.models.weights.statistics import read_object
from vlakern.space import Embodiment, Field, Slot, SlotMap, VectorStats

__all__ = [
    "Settings",
    "is_recent",
    "lerobot_records",
    "read_settings",
    "refuse_aloha",
    "vectors",
]

log = logging.getLogger("vlakern.models")

T = TypeVar("T")
STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
# LeRobot's policies do not say how fast the robot is; its recordings are made at this rate.
FRAMES_PER_SECOND = 30.0
# Its checkpoints name their tokenizer and do not hold it.
TOKENIZERS = {
    "pi0": "google/paligemma-3b-pt-224",
    "pi05": "google/paligemma-3b-pt-224",
    "smolvla": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
}


@dataclass(frozen=True)
class Settings:
    """What a policy's config.json says, checked.

    Attributes:
        kind: ``pi0``, ``pi05`` or ``smolvla``.
        state_width, action_width: numbers of the robot.
        views: camera names in the policy's order, without those that are always empty.
        values: the whole file.
    """

    kind: str
    state_width: int
    action_width: int
    views: tuple[str, ...]
    values: dict[str, Any]
    where: str

    def get(self, key: str, kind: type[T], default: T) -> T:
        """A value of the given type.

        Raises:
            ConfigError: it has another one.
        """
        found = self.values.get(key, default)
        if found is None:
            return default
        if kind is float and type(found) is int:
            found = float(found)
        if not isinstance(found, kind) or (type(found) is bool and kind is not bool):
            raise ConfigError(
                f"{self.where}.{key} is {str(found)[:40]!r}, expected {kind.__name__}; copy the"
                " checkpoint's config again"
            )
        return cast("T", found)


def read_settings(directory: Path) -> Settings:
    """Reads config.json.

    Raises:
        CheckpointError, ConfigError: naming the file and the key.
    """
    path = directory / "config.json"
    values = read_object(path)
    where = str(path)
    taken, given = values.get("input_features") or {}, values.get("output_features") or {}
    views = list(_features(taken, "VISUAL", f"{where}.input_features"))
    views = [name.removeprefix(IMAGES) for name in views if "empty_camera" not in name]
    if not views:
        raise ConfigError(f"{where}.input_features has no image; the policy needs a camera")
    states = _features(taken, "STATE", f"{where}.input_features")
    actions = _features(given, "ACTION", f"{where}.output_features")
    for names, key, part in ((states, STATE, "input"), (actions, ACTION, "output")):
        if list(names) != [key]:
            raise ConfigError(
                f"{where}.{part}_features has {', '.join(names) or 'nothing'} in the place of"
                f" {key}; expected that one vector"
            )
    kind = values.get("type")
    return Settings(str(kind), states[STATE], actions[ACTION], tuple(views), values, where)


def _features(features: Any, kind: str, where: str) -> dict[str, int]:
    """First dimension of the features of one kind, by name."""
    found: dict[str, int] = {}
    if not isinstance(features, dict):
        raise ConfigError(f"{where} is {str(features)[:40]!r}, expected an object")
    for name, feature in features.items():
        if not isinstance(feature, dict) or feature.get("type") != kind:
            continue
        shape = feature.get("shape")
        if not isinstance(shape, list) or not shape or type(shape[0]) is not int or shape[0] < 1:
            raise ConfigError(
                f"{where}.{name}.shape is {str(shape)[:40]!r}, expected a list of positive numbers"
            )
        found[name] = shape[0]
    return found


def vectors(
    name: str, widths: tuple[int, int], padded: tuple[int, int], views: tuple[str, ...], rate: float
) -> tuple[Embodiment, SlotMap, SlotMap]:
    """A robot of which only the number of its numbers is known, and its state and action maps.

    Args:
        name: of the robot and its maps.
        widths: numbers of state and action.
        padded: widths of the model's vectors.
        views: camera names.
        rate: of its actions [Hz].

    Raises:
        ConfigError: a vector that is wider than the model's.
    """
    maps = []
    for part, width, most in zip(("state", "action"), widths, padded, strict=True):
        if width > most:
            raise ConfigError(
                f"{name}: the robot's {part} has {width} numbers, the model takes at most {most}"
            )
        maps.append(SlotMap(name, most, (Slot(part, "1", 0, width),)))
    robot = Embodiment(
        name=name,
        slot_map=name,
        control_rate=rate,
        views=views,
        state_width=widths[0],
        action_width=widths[1],
        state=(Field("state", (0, widths[0])),),
        action=(Field("action", (0, widths[1])),),
        description="Numbers in the checkpoint's own order and units.",
    )
    return robot, maps[0], maps[1]


def lerobot_records(
    directory: Path,
    settings: Settings,
    config: VLAConfig,
    bos: str,
    image: ImageRule,
    execute: int,
) -> PolicyRecords:
    """Everything around the network, from config.json and the processor files.

    Args:
        bos: the token that the tokenizer puts first; empty for none.
        image: the family's rule.
        execute: actions per prediction that are run.

    Raises:
        CheckpointError, ConfigError: naming what is missing or cannot be.
    """
    _tell_real_time(settings)
    steps = read_processors(directory)
    if steps.steps:
        check_processors(settings.kind, settings.where, steps.steps, directory / PRE)
    if steps.state_in_words != (config.state == "words"):
        raise ConfigError(
            f"{directory / PRE} {'puts' if steps.state_in_words else 'does not put'} the state into"
            f" the prompt, which the network of {settings.where} (type {settings.kind!r}) needs"
            " otherwise; copy all files of one checkpoint"
        )
    widths = settings.state_width, settings.action_width
    robot, state_map, action_map = vectors(
        f"lerobot-{settings.kind}",
        widths,
        (config.state_dim, config.action_dim),
        settings.views,
        FRAMES_PER_SECOND,
    )
    processing = Processing(
        state=steps.state.mode,
        action=steps.action.mode,
        execute=execute,
        epsilon="lerobot",
        image=image,
        prompt=steps.prompt(bos, "robot" if is_recent(directory) else "padded"),
        cameras=steps.cameras(),
        relative=steps.relative_indices(settings.action_width),
    )
    return PolicyRecords(
        config=config,
        embodiment=robot,
        state_map=state_map,
        action_map=action_map,
        processing=processing,
        state_stats=_stats(steps.state, state_map, widths[0], settings),
        action_stats=_stats(steps.action, action_map, widths[1], settings),
        tokenizer=TextTokenizer.from_file(
            tokenizer_file(directory),
            config.vocab_size,
            steps.tokenizer or TOKENIZERS.get(settings.kind, ""),
        ),
    )


def _stats(one: Normalised, slots: SlotMap, width: int, settings: Settings) -> VectorStats:
    """Statistics of a vector; LeRobot has one per number of the robot, neither more nor fewer."""
    stats = one.stats(slots.names())
    if one.mode != "none":
        check_width(sum(stats.present), width, one.where, settings.where)
    return stats


def _tell_real_time(settings: Settings) -> None:
    """Says what becomes of LeRobot's real-time chunking, which is of its loop and not of a chunk.

    Raises:
        ConfigError: a value of another type.
    """
    found = settings.values.get("rtc_config")
    if found is None:
        return
    enabled = found.get("enabled", True) if isinstance(found, dict) else None
    if type(enabled) is not bool:
        raise ConfigError(
            f"{settings.where}.rtc_config is {str(found)[:40]!r}, expected null or LeRobot's"
            " settings of real-time chunking with true or false for enabled; copy the file again"
        )
    if enabled:
        _say_real_time(settings.where, "frozen" if found.get("mode") == "trained" else "cheap")


@cache
def _say_real_time(where: str, form: str) -> None:
    log.warning(
        "%s.rtc_config is not applied by itself: calls are led by the actions that were decided"
        " before where they are given them, as LoopConfig(prefix=True, form=%r) does, with the"
        " weights of arXiv 2506.07339 and not with this file's schedule, weight and horizon",
        where,
        form,
    )


def refuse_aloha(settings: Settings) -> None:
    """Refuses networks that see an Aloha's joints and grippers as those of openpi's own arm.

    Raises:
        ConfigError: naming the key.
    """
    for key in ("adapt_to_pi_aloha", "use_delta_joint_actions_aloha"):
        if settings.get(key, bool, False):
            raise ConfigError(
                f"{settings.where}.{key} is true: joints with flipped signs and grippers as angles"
                " around the network are not supported; use a checkpoint without it"
            )


def is_recent(directory: Path) -> bool:
    """Whether LeRobot had relative actions when it wrote a policy (from 0.5.1 on).

    Up to 0.4 it padded the images of pi with other levels, and said the padding of pi0.5's state.
    """
    path = directory / PRE
    steps = read_object(path).get("steps") if path.is_file() else None
    listed = steps if isinstance(steps, list) else []
    names = [step.get("registry_name") for step in listed if isinstance(step, dict)]
    return "relative_actions_processor" in names
