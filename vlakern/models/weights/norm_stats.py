"""openpi's statistics: ``assets/<asset id>/norm_stats.json``."""

from collections.abc import Sequence
from pathlib import Path

from vlakern.errors import CheckpointError, ConfigError
from vlakern.models.weights.statistics import inside, read_object, vector_stats
from vlakern.space.normalize import Mode
from vlakern.space.vector_stats import VectorStats

__all__ = ["delta_mask", "find_norm_stats", "read_norm_stats"]

FILE = "norm_stats.json"


def find_norm_stats(directory: Path, asset: str | None = None) -> Path:
    """The statistics of an openpi checkpoint.

    Args:
        asset: which robot's, such as ``trossen`` or ``physical-intelligence/libero``; may be left
            out where there is one.

    Raises:
        CheckpointError: there are none, or several and ``asset`` does not say which.
    """
    if asset is not None:
        return inside(directory, f"assets/{asset}/{FILE}", f"{directory / 'config.json'}.asset_id")
    root = directory / "assets"
    found = sorted(path.parent.relative_to(root).as_posix() for path in root.rglob(FILE))
    if len(found) != 1:
        raise CheckpointError(
            f"{root} has statistics of {', '.join(found) or 'no robot'}, expected one {FILE}; write"
            f' "asset_id": "{found[0]}" or another of them into {directory / "config.json"}'
            if found
            else f"{root}/<asset id>/{FILE} is missing; copy the checkpoint with its assets"
        )
    return root / found[0] / FILE


def read_norm_stats(
    path: Path, mode: Mode, state_names: Sequence[str], action_names: Sequence[str]
) -> tuple[VectorStats, VectorStats]:
    """Statistics of state and actions; for ``Normalizer(..., epsilon="openpi")``.

    Args:
        mode: ``zscore`` for pi0, ``quantile`` for pi0.5.
        state_names, action_names: of the slot maps' indices.

    Raises:
        CheckpointError, ConfigError: naming the file and the field.
    """
    found = read_object(path).get("norm_stats")
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: key 'norm_stats' is missing; expected openpi's statistics")
    made = []
    for key, names in (("state", state_names), ("actions", action_names)):
        if not isinstance(found.get(key), dict):
            raise ConfigError(
                f"{path}: norm_stats.{key} is missing, there are"
                f" {', '.join(sorted(map(str, found))) or 'none'}; expected state and actions"
            )
        made.append(vector_stats(found[key], names, mode, f"{path}: norm_stats.{key}"))
    return made[0], made[1]


def delta_mask(*runs: int) -> tuple[int, ...]:
    """Indices for ``Processing.relative`` from openpi's notation of delta actions.

    ``delta_mask(6, -1)`` is six numbers that are deltas and one that is not.
    """
    at, found = 0, []
    for run in runs:
        found += range(at, at + max(run, 0))
        at += abs(run)
    return tuple(found)
