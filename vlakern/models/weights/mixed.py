"""Files of two checkpoints in one directory: what tells them apart, and the sentence about it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlakern.errors import ConfigError

__all__ = ["check_processors", "check_same_statistics", "check_tensors", "check_width", "kind_of"]

# Steps that LeRobot puts before one kind of network only.
STEPS = {
    "pi0": "pi0_new_line_processor",
    "pi05": "pi05_prepare_state_tokenizer_processor_step",
    "smolvla": "smolvla_new_line_processor",
}
# Parts of the names of tensors, the first that is found telling the network.
TENSORS = {
    "vlm_with_expert.": "smolvla",
    "gemma_expert.model.layers.0.input_layernorm.dense.": "pi05",
    "paligemma_with_expert.": "pi0",
    "vit_model.": "being_h05",
}
# Between files that were written from the same numbers.
CLOSE = 1e-6


def kind_of(names: Iterable[str]) -> str:
    """Whose network tensors of these names are; empty if that is not known."""
    seen = list(names)
    for part, kind in TENSORS.items():
        if any(part in name for name in seen):
            return kind
    return ""


def check_tensors(kinds: Sequence[str], config: str, names: Iterable[str], weights: Any) -> None:
    """Refuses the weights of another kind of network than config.json says.

    Args:
        kinds: what ``config``, a file and perhaps its key, can mean.
        names: of the tensors in the file ``weights``.

    Raises:
        ConfigError: naming both files and both kinds.
    """
    found = kind_of(names)
    if found and found not in kinds:
        raise ConfigError(
            f"{config} is of {' or '.join(kinds)}, but {weights} holds the tensors of {found}; copy"
            " both files of one checkpoint"
        )


def check_processors(kind: str, config: str, steps: Iterable[str], path: Path) -> None:
    """Refuses the processor file of another kind of network.

    Raises:
        ConfigError: naming the file, the step that is another's and the one that was expected.
    """
    present = list(steps)
    if kind not in STEPS or STEPS[kind] in present:
        return
    other = next((one for one, step in STEPS.items() if step in present), None)
    if other is not None:
        raise ConfigError(
            f"{path} has the step {STEPS[other]!r} of {other!r}, expected {STEPS[kind]!r}, because"
            f" {config}.type is {kind!r}; copy all files of one checkpoint"
        )
    if kind == "pi05":
        raise ConfigError(
            f"{path} does not put the state into the prompt, expected the step {STEPS[kind]!r},"
            f" because {config}.type is {kind!r}; copy all files of one checkpoint"
        )


def check_same_statistics(
    before: Mapping[str, Sequence[float]],
    after: Mapping[str, Sequence[float]],
    files: tuple[Any, Any],
) -> None:
    """Refuses two processor files that were written for other actions.

    LeRobot writes the statistics of the action into both, and only the second are used.

    Args:
        before, after: the action's statistics by name, of the pre- and the post-processor.
        files: where they are from.

    Raises:
        ConfigError: naming both files and the first numbers that differ.
    """
    for name in sorted(before.keys() & after.keys()):
        one, other = before[name], after[name]
        if len(one) != len(other):
            found = f" has {len(one)} numbers in the one and {len(other)} in the other"
        else:
            pairs = zip(one, other, strict=True)
            far = ((i, a, b) for i, (a, b) in enumerate(pairs) if _differ(a, b))
            first = next(far, None)
            if first is None:
                continue
            found = f"[{first[0]}] is {first[1]:g} in the one and {first[2]:g} in the other"
        raise ConfigError(
            f"{files[0]} and {files[1]} are of two checkpoints: action.{name}{found}, expected the"
            " same; copy all files of one checkpoint"
        )


def _differ(one: float, other: float) -> bool:
    both = math.isfinite(one) and math.isfinite(other)
    return both and not math.isclose(one, other, rel_tol=CLOSE, abs_tol=CLOSE)


def check_width(found: int, expected: int, where: str, config: str) -> None:
    """Refuses statistics of another number of numbers than the robot has.

    Raises:
        ConfigError: naming the file and config.json.
    """
    if found != expected:
        raise ConfigError(
            f"{where} has statistics of {found} numbers, expected {expected}, which {config} gives"
            " the robot; copy all files of one checkpoint"
        )
