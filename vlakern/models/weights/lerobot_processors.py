"""LeRobot's processor files, and the buffers in which it kept statistics before them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlakern.errors import CheckpointError, ConfigError
from vlakern.models.processing import CameraName, Cleaning, PromptRule
from vlakern.models.weights.mixed import check_same_statistics
from vlakern.models.weights.statistics import inside, read_object, vector_stats
from vlakern.models.weights.weights_file import open_tensors
from vlakern.space.normalize import Mode
from vlakern.space.slots import MOST_WIDTH
from vlakern.space.vector_stats import VectorStats

__all__ = ["MODES", "LeRobotProcessors", "Normalised", "read_floats", "read_processors"]

STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
MODES: dict[str, Mode] = {
    "MEAN_STD": "zscore",
    "MIN_MAX": "min_max",
    "QUANTILES": "quantile",
    "IDENTITY": "none",
}
# Steps without a meaning here: one observation at a time, wherever it is computed.
PLAIN = ("to_batch_processor", "device_processor")
NEWLINES = ("pi0_new_line_processor", "smolvla_new_line_processor")
STATE_WORDS = "pi05_prepare_state_tokenizer_processor_step"
EPSILON = 1e-8
BUFFERS = ("normalize_inputs.buffer_", "unnormalize_outputs.buffer_", "normalize_targets.buffer_")
CLEAN: tuple[Cleaning, ...] = (
    "strip",
    "underscores",
    "newlines",
)


@dataclass(frozen=True)
class Normalised:
    """How one vector is normalised.

    Attributes:
        found: statistics as the file has them; empty where there are none.
        where: file and field, for messages.
    """

    mode: Mode
    found: Mapping[str, list[float]]
    where: str

    def stats(self, names: Sequence[str]) -> VectorStats:
        """For a slot map with these indices; for ``Normalizer(..., epsilon="lerobot")``.

        Raises:
            ConfigError: naming the file and the field.
        """
        return vector_stats(self.found, names, self.mode, self.where)


@dataclass(frozen=True)
class LeRobotProcessors:
    """What LeRobot does around a network.

    Attributes:
        state, action: normalisation; the action's is that of the post-processor.
        renames: names of observations and what the policy calls them.
        newline: whether the instruction gets one at its end.
        state_in_words: whether the prompt holds the state.
        tokenizer: whose it is, as far as the file says.
        most_tokens: longer prompts lose their end.
        absolute: indices of the action that stay so where the others are relative to the state;
            None where nothing is relative.
        steps: names of what is done before the network; none up to LeRobot 0.3.
    """

    state: Normalised
    action: Normalised
    renames: Mapping[str, str]
    newline: bool
    state_in_words: bool
    tokenizer: str
    most_tokens: int | None
    absolute: tuple[int, ...] | None
    steps: tuple[str, ...] = ()

    def prompt(self, bos: str, numbers: Literal["robot", "padded"] = "robot") -> PromptRule:
        """The prompt rule; ``bos`` and ``numbers`` are not in the files.

        Args:
            bos: the token that the tokenizer puts first (``<bos>`` for PaliGemma, none for
                SmolVLM).
            numbers: ``padded`` for pi0.5 as LeRobot up to 0.4 ran it.
        """
        if self.state_in_words:
            parts = ("Task: {instruction}, State: {state};\nAction: ",)
            return PromptRule(CLEAN, "", parts, bos, self.most_tokens, numbers=numbers)
        ending = "\n" if self.newline else ""
        return PromptRule(ending=ending, bos=bos, most_tokens=self.most_tokens)

    def cameras(self) -> tuple[CameraName, ...]:
        """The renamed cameras, by the names after ``observation.images.``."""
        return tuple(
            CameraName(old.removeprefix(IMAGES), new.removeprefix(IMAGES))
            for old, new in self.renames.items()
            if new.startswith(IMAGES)
        )

    def relative_indices(self, width: int) -> tuple[int, ...]:
        """Indices for ``Processing.relative`` of an action with ``width`` numbers."""
        if self.absolute is None:
            return ()
        return tuple(i for i in range(width) if i not in self.absolute)


def read_processors(directory: Path) -> LeRobotProcessors:
    """The processor files of a policy directory, or what stood for them up to LeRobot 0.3.

    Raises:
        CheckpointError, ConfigError: a file or a step that is missing, damaged or unknown, naming
            it.
    """
    if not (directory / PRE).is_file():
        return _old(directory)
    pre, post = _steps(directory / PRE), _steps(directory / POST)
    _check_known(pre, directory / PRE, ("rename_observations_processor", "tokenizer_processor"))
    _check_known(post, directory / POST, ())
    absolute = _absolute(pre, post, directory)
    words = _config(pre, "tokenizer_processor")
    most = words.get("max_length") if words.get("truncation", True) else None
    said = STATE_WORDS in pre and _config(pre, STATE_WORDS).get("include_state_in_prompt", True)
    if STATE_WORDS in pre and not said:
        raise ConfigError(
            f"{directory / PRE}: step {STATE_WORDS!r} leaves the state out of the prompt, which is"
            " not supported; use a checkpoint with the state in words"
        )
    _check_twins(pre, post, directory)
    return LeRobotProcessors(
        state=_normalised(pre, "normalizer_processor", STATE, directory / PRE),
        action=_normalised(post, "unnormalizer_processor", ACTION, directory / POST),
        renames=_renames(pre, directory / PRE),
        newline=any(name in pre for name in NEWLINES),
        state_in_words=STATE_WORDS in pre,
        tokenizer=str(words.get("tokenizer_name") or ""),
        most_tokens=most,
        absolute=absolute,
        steps=tuple(pre),
    )


def _check_twins(pre: Mapping[str, Any], post: Mapping[str, Any], directory: Path) -> None:
    """Refuses processors that were written for different actions."""
    sides = (pre, "normalizer_processor", PRE), (post, "unnormalizer_processor", POST)
    found = []
    for steps, step, name in sides:
        modes = _config(steps, step).get("norm_map")
        mode = modes.get("ACTION") if isinstance(modes, dict) else None
        state_file = steps.get(step, {}).get("state_file")
        if mode is None or state_file is None:
            return  # nothing to compare, or what its own reader says
        found.append((mode, inside(directory, state_file, f"{directory / name}: step {step!r}")))
    (before, first), (after, second) = found
    if before != after:
        raise ConfigError(
            f"{directory / PRE} has norm_map.ACTION {before!r} and {directory / POST} {after!r},"
            " expected the same; copy both files of one checkpoint"
        )
    check_same_statistics(
        read_floats(first, f"{ACTION}."), read_floats(second, f"{ACTION}."), (first, second)
    )


def _renames(pre: Mapping[str, dict[str, Any]], path: Path) -> dict[str, str]:
    step = "rename_observations_processor"
    found = _config(pre, step).get("rename_map") or {}
    if not isinstance(found, dict) or not all(isinstance(new, str) for new in found.values()):
        raise ConfigError(
            f"{path}: step {step!r}.rename_map is {str(found)[:40]!r}, expected new names by old"
            " ones; copy the file again"
        )
    return found


def _steps(path: Path) -> dict[str, dict[str, Any]]:
    """Steps by their registry name."""
    steps = read_object(path).get("steps")
    if not isinstance(steps, list):
        raise ConfigError(f"{path}: key 'steps' is missing; expected LeRobot's processor file")
    found: dict[str, dict[str, Any]] = {}
    for i, step in enumerate(steps):
        name = step.get("registry_name", step.get("class")) if isinstance(step, dict) else None
        if not isinstance(name, str) or not isinstance(step.get("config", {}), dict):
            raise ConfigError(f"{path}: steps[{i}] has no registry_name; expected a step")
        if name in found:
            raise ConfigError(f"{path}: step {name!r} is there twice, which is not supported")
        found[name] = step
    return found


def _config(steps: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    return steps.get(name, {}).get("config", {})


def _check_known(steps: Mapping[str, Any], path: Path, more: Sequence[str]) -> None:
    known = {*PLAIN, *NEWLINES, STATE_WORDS, *more}
    known |= {"normalizer_processor", "unnormalizer_processor"}
    known |= {"relative_actions_processor", "absolute_actions_processor"}
    unknown = sorted(set(steps) - known)
    if unknown:
        raise ConfigError(
            f"{path}: step {unknown[0]!r} is not known; known are {', '.join(sorted(known))}"
        )


def _normalised(steps: Mapping[str, Any], step: str, feature: str, path: Path) -> Normalised:
    config, where = _config(steps, step), f"{path}: step {step!r}"
    if step not in steps:
        raise ConfigError(f"{where} is missing; expected LeRobot's processors of a policy")
    if config.get("eps", EPSILON) != EPSILON:
        raise ConfigError(f"{where}: eps is {config['eps']}, expected {EPSILON:g}")
    kind, modes = "ACTION" if feature == ACTION else "STATE", config.get("norm_map", {})
    if not isinstance(modes, dict):
        raise ConfigError(
            f"{where}.norm_map is {str(modes)[:40]!r}, expected modes by kind; copy the file again"
        )
    mode = _mode(modes.get(kind, "IDENTITY"), f"{where}.norm_map.{kind}")
    if _mode(modes.get("VISUAL", "IDENTITY"), f"{where}.norm_map.VISUAL") != "none":
        raise ConfigError(
            f"{where}.norm_map.VISUAL is {modes['VISUAL']!r}, expected IDENTITY: the vision tower"
            " takes images as they are"
        )
    only = config.get("normalize_observation_keys")
    if feature == STATE and only is not None and feature not in only:
        mode = "none"
    if mode == "none":
        return Normalised(mode, {}, f"{where}.{feature}")
    if "state_file" not in steps[step]:
        raise ConfigError(
            f"{where} has no state_file: the statistics of {feature!r} are not in this checkpoint;"
            " it needs to be trained on a robot's data first"
        )
    file = inside(path.parent, steps[step]["state_file"], f"{where}.state_file")
    found = {
        key.rpartition(".")[2]: values
        for key, values in read_floats(file, f"{feature}.").items()
        if key.rpartition(".")[0] == feature
    }
    return Normalised(mode, found, f"{file}: {feature}")


def _mode(name: Any, where: str) -> Mode:
    if not isinstance(name, str) or name not in MODES:
        raise ConfigError(f"{where} is {str(name)[:40]!r}, expected one of {', '.join(MODES)}")
    return MODES[name]


def _absolute(
    pre: Mapping[str, Any], post: Mapping[str, Any], directory: Path
) -> tuple[int, ...] | None:
    config = _config(pre, "relative_actions_processor")
    goes, comes = (
        bool(_config(steps, name).get("enabled", False))
        for steps, name in (
            (pre, "relative_actions_processor"),
            (post, "absolute_actions_processor"),
        )
    )
    if goes != comes:
        raise ConfigError(
            f"{directory}: relative_actions_processor is enabled in {PRE if goes else POST} alone,"
            " expected both or neither"
        )
    if not goes:
        return None
    lists = [config.get(key) or [] for key in ("action_names", "exclude_joints")]
    for key, found in zip(("action_names", "exclude_joints"), lists, strict=True):
        if not isinstance(found, list):
            raise ConfigError(
                f"{directory / PRE}: step 'relative_actions_processor'.{key} is"
                f" {str(found)[:40]!r}, expected a list of names; copy the file again"
            )
    names = [str(name).lower() for name in lists[0]]
    excluded = [str(one).lower() for one in lists[1] if one]
    return tuple(i for i, name in enumerate(names) if any(one in name for one in excluded))


def _old(directory: Path) -> LeRobotProcessors:
    """Statistics are buffers beside the weights; the mapping is in config.json."""
    path, weights = directory / "config.json", directory / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{directory / PRE} is missing; copy the whole checkpoint")
    config = read_object(path)
    modes = config.get("normalization_mapping")
    if not isinstance(modes, dict):
        raise CheckpointError(
            f"{directory / PRE} is missing, and {path} has no normalization_mapping; copy the whole"
            " checkpoint"
        )
    buffers = read_floats(weights, *BUFFERS)
    if not buffers:
        raise CheckpointError(
            f"{directory / PRE} is missing, and {weights} has no statistics; copy the whole"
            " checkpoint"
        )
    made: dict[str, Normalised] = {}
    for kind, feature in (("STATE", STATE), ("ACTION", ACTION)):
        named = tuple(f"{start}{feature.replace('.', '_')}." for start in BUFFERS)
        found = {
            key.rpartition(".")[2]: values
            for key, values in buffers.items()
            if key.startswith(named)
        }
        mode = _mode(modes.get(kind, "IDENTITY"), f"{path}: normalization_mapping.{kind}")
        made[kind] = Normalised(mode, found, f"{weights}: {feature}")
    most = config.get("tokenizer_max_length")
    return LeRobotProcessors(made["STATE"], made["ACTION"], {}, True, False, "", most, None)


def read_floats(path: Path, *starts: str) -> dict[str, list[float]]:
    """The vectors whose names start so, of a safetensors file, as lists of numbers."""
    tensors, found = open_tensors(path), {}
    for name, info in tensors.infos.items():
        if not name.startswith(starts) or len(info.shape) != 1:
            continue
        if info.shape[0] > MOST_WIDTH or info.dtype not in ("F32", "F64"):
            raise CheckpointError(
                f"{path}: {name!r} is {info.dtype}{list(info.shape)}, expected a short list of"
                " numbers"
            )
        found[name] = tensors(name).double().tolist()
    return found
