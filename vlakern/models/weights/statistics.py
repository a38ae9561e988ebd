"""Other families' statistics into the records of a slot map, checked by file and field."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlakern.errors import CheckpointError, ConfigError
from vlakern.space.normalize import Mode
from vlakern.space.vector_stats import FIELDS, VectorStats
from vlakern.untrusted import read_json

__all__ = ["NEEDED", "inside", "read_object", "vector_stats"]

NEEDED: dict[str, tuple[str, ...]] = {
    "zscore": ("mean", "std"),
    "quantile": ("q01", "q99"),
    "min_max": ("min", "max"),
    "binary": ("min", "max"),
    "threshold": (),
    "none": (),
}
# Of slots and statistics that nobody measured; see VectorStats.
PLACEHOLDERS = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
# Files of statistics are small; a larger one is something else.
LIMIT = 1 << 24


def vector_stats(
    found: Mapping[str, Any], names: Sequence[str], mode: Mode, where: str
) -> VectorStats:
    """Statistics of the first slots of a map; the others are absent, as a family pads them.

    What the mode does not need may be missing: a placeholder stands for it. Where nothing is
    needed and nothing is there, no slot is absent.

    Args:
        found: numbers by what they are (``mean``, ``std``, ``min``, ``max``, ``q01``, ``q99``).
        names: of the map's indices.
        where: file and field, for messages.

    Raises:
        ConfigError: an unknown mode, numbers that the mode needs and that are not there, more than
            the map has, of different lengths, not finite, or out of order.
    """
    if mode not in NEEDED:
        raise ConfigError(f"{where}: no normalisation {mode!r}; use one of {', '.join(NEEDED)}")
    lists = {
        key: _numbers(found[key], f"{where}.{key}")
        for key in FIELDS
        if found.get(key) is not None and (key in NEEDED[mode] or _plain(found[key]))
    }
    for key in NEEDED[mode]:
        if key not in lists:
            raise ConfigError(
                f"{where}.{key} is missing, the normalisation {mode} needs"
                f" {' and '.join(NEEDED[mode])}; compute the statistics again"
            )
    widths = {key: len(numbers) for key, numbers in lists.items()}
    if len(set(widths.values())) > 1:
        raise ConfigError(f"{where}: lists of one length expected, found {widths}")
    if not lists:
        return VectorStats.units(names)
    width = next(iter(widths.values()))
    if width > len(names):
        raise ConfigError(
            f"{where} has {width} numbers, expected at most the {len(names)} that the model takes"
        )
    _check_order(lists, where)
    padded = {
        key: (*lists.get(key, [value] * width), *[value] * (len(names) - width))
        for key, value in PLACEHOLDERS.items()
    }
    present = tuple(i < width for i in range(len(names)))
    return VectorStats(**padded, names=tuple(names), present=present)


def _plain(values: Any) -> bool:
    """Whether these are finite numbers; what is not needed and is not is left out."""
    given: list[Any] = list(values) if isinstance(values, Sequence) else [None]
    return all(isinstance(one, (int, float)) and math.isfinite(one) for one in given)


def _numbers(values: Any, where: str) -> list[float]:
    right = isinstance(values, Sequence) and not isinstance(values, str)
    if not right or not all(type(value) in (int, float) for value in values):
        raise ConfigError(
            f"{where} is {str(values)[:40]!r}, expected a list with one number per slot"
        )
    for i, value in enumerate(map(float, values)):
        if not math.isfinite(value):
            raise ConfigError(
                f"{where}[{i}] is {value}, expected a finite number; compute the statistics again"
            )
    return [float(value) for value in values]


def _check_order(lists: Mapping[str, Sequence[float]], where: str) -> None:
    for i, value in enumerate(lists.get("std", ())):
        if value < 0:
            raise ConfigError(f"{where}.std[{i}] is {value:g}, expected a deviation of at least 0")
    for low, high in (("min", "max"), ("q01", "q99")):
        for i, pair in enumerate(zip(lists.get(low, ()), lists.get(high, ()), strict=False)):
            if pair[0] > pair[1]:
                raise ConfigError(
                    f"{where}.{low}[{i}] is {pair[0]:g} and {high}[{i}] is {pair[1]:g}, expected"
                    " the lower first"
                )


def inside(directory: Path, name: Any, where: str) -> Path:
    """The file of this name in a directory; links are followed, as caches of models have them.

    Raises:
        CheckpointError: the name leads out of it, or there is no such file.
    """
    parts = Path(name).parts if isinstance(name, str) and name and "\0" not in name else ()
    if not parts or Path(name).is_absolute() or ".." in parts:
        raise CheckpointError(
            f"{where} names the file {name!r}, expected one inside {directory}; files of a"
            " checkpoint are in its directory"
        )
    path = directory / name
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, {where} names it; copy the whole checkpoint")
    return path


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is missing, too large, or holds something else.
    """
    found = read_json(path, LIMIT, "copy the whole checkpoint")
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds {str(found)[:40]!r}, expected a JSON object")
    return found
