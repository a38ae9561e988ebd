"""Being-H's statistics: ``<dataset>_metadata.json``, by part of a vector."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vlakern.errors import ConfigError
from vlakern.models.weights.statistics import inside, read_object, vector_stats
from vlakern.space.normalize import Mode
from vlakern.space.slots import SlotMap
from vlakern.space.vector_stats import FIELDS, VectorStats

__all__ = ["MODES", "read_metadata", "unified_stats"]

MODES: dict[str, Mode] = {
    "q99": "quantile",
    "mean_std": "zscore",
    "min_max": "min_max",
    "binary": "threshold",
}


def read_metadata(directory: Path, dataset: str, variant: str | None = None) -> dict[str, Any]:
    """``{"state": {part: statistics}, "action": ...}`` of one dataset.

    Args:
        variant: a task or an embodiment whose own statistics these are; ``merged`` for those of
            all; by default the first, as Being-H chooses.

    Raises:
        CheckpointError, ConfigError: naming the file and the key.
    """
    path = inside(directory, f"{dataset}_metadata.json", "dataset")
    content = read_object(path)
    chosen = content.get(dataset)
    if not isinstance(chosen, dict):
        raise ConfigError(f"{path}: key {dataset!r} is missing; found {_some(content)}")
    variants = content.get(f"{dataset}_variants")
    if isinstance(variants, dict) and variants and variant != "merged":
        name = next(iter(variants)) if variant is None else variant
        if name not in variants:
            raise ConfigError(f"{path}: no variant {name!r}; use merged or {_some(variants)}")
        chosen = variants[name]
    elif variant not in (None, "merged"):
        raise ConfigError(f"{path}: no variant {variant!r}; the file has none")
    found = chosen.get("statistics") if isinstance(chosen, dict) else None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: key 'statistics' of {dataset!r} is missing")
    return found


def unified_stats(
    statistics: Mapping[str, Any],
    part: Literal["state", "action"],
    ranges: Mapping[str, Sequence[int]],
    modes: Mapping[str, str],
    slots: SlotMap,
    where: str,
) -> VectorStats:
    """Statistics of the unified vector; indices that no part fills are absent.

    Args:
        statistics: of :func:`read_metadata`.
        ranges: ``[start, stop)`` in the unified vector of every part that the robot has.
        modes: Being-H's normalisation of those parts that have one; see ``MODES``.

    Raises:
        ConfigError: a part without statistics, an unknown mode, or numbers that do not fit.
    """
    names = slots.names()
    columns = {key: list(getattr(VectorStats.units(names), key)) for key in FIELDS}
    present = [False] * slots.width
    for name, (start, stop) in ranges.items():
        mode = modes.get(name)
        if mode is not None and mode not in MODES:
            raise ConfigError(
                f"{where}: {part}.{name} has the normalisation {mode!r}, expected one of"
                f" {', '.join(MODES)}"
            )
        present[start:stop] = [True] * (stop - start)
        if mode is None or mode == "binary":
            continue
        given = statistics.get(part, {})
        if not isinstance(given, Mapping) or not isinstance(given.get(name), Mapping):
            raise ConfigError(f"{where}: statistics.{part}.{name} is missing; {mode} needs it")
        at = f"{where}: statistics.{part}.{name}"
        found = vector_stats(given[name], names[start:stop], MODES[mode], at)
        if not all(found.present):
            raise ConfigError(
                f"{at} has {sum(found.present)} numbers, expected the {stop - start} of"
                f" [{start}, {stop})"
            )
        for key in FIELDS:
            columns[key][start:stop] = getattr(found, key)
    lists: dict[str, Any] = dict(columns)
    return VectorStats(**lists, names=names, present=tuple(present))


def _some(found: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, found))[:8]) or "nothing"
