"""Mixtures of datasets as TOML files: which datasets, in which groups, with which weights."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vlakern.data.dataset import Kind
from vlakern.errors import ConfigError
from vlakern.records import from_dict, read_toml

__all__ = ["DatasetEntry", "Group", "Mixture", "Weights", "read_mixture", "shares", "single"]

Weights = Literal["explicit", "size", "effective"]
Balance = Literal["frames", "tasks"]
# Files that extend each other; more is a slip.
MOST_FILES = 64
_INHERITED = ("slot_map", "target_rate", "weights", "power", "short_episodes", "statistics")


@dataclass(frozen=True)
class DatasetEntry:
    """One dataset of a mixture.

    Attributes:
        name: by which messages and reports call it.
        path: of its directory or file, relative to the mixture's ``root``.
        kind: of its files; ``auto`` looks at them.
        options: what the reader of that kind takes by name, such as ``state`` and ``action``.
        group: one of the mixture's groups.
        embodiment: a robot that ships, or a TOML file relative to the mixture's file; the robot
            that ships under the dataset's own ``robot_type`` if it is left out.
        rate: that the dataset is expected to have [Hz]; None takes its own.
        stride: frames from one step of a chunk to the next; None follows ``target_rate``.
        target_rate: that the steps of a chunk should come near [Hz]; None is the mixture's.
        instructions: fields of which each sample takes one, all equally often; the episode's task
            if there are none.
        views: recorded view -> its name in the mixture, for those that are used, in their order;
            all of them under their own names if it is left out.
        balance: draws every frame equally often, or every task.
        weight: factor of the dataset's share in its group; 0 leaves it out.
    """

    name: str
    path: str
    kind: Kind = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    group: str = "all"
    embodiment: str = ""
    rate: float | None = None
    stride: int | None = None
    target_rate: float | None = None
    instructions: tuple[str, ...] = ()
    views: Mapping[str, str] = field(default_factory=dict)
    balance: Balance = "frames"
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_text(self.name, "the name of a dataset")
        at = f"dataset {self.name!r}"
        _check_text(self.path, f"{at}: path")
        _check_weight(self.weight, f"{at}: weight")
        for name in ("rate", "target_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{at}: {name} is {value}, expected more than 0 Hz")
        if self.stride is not None and self.stride < 1:
            raise ConfigError(f"{at}: stride is {self.stride}, expected at least 1 frame")
        if self.stride is not None and self.target_rate is not None:
            raise ConfigError(f"{at}: stride and target_rate say the same thing; keep one of them")
        names = list(self.views.values())
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"{at}: views: two views are called {twice!r}; give each its own")


@dataclass(frozen=True)
class Group:
    """Datasets that share a weight.

    Attributes:
        name: of the group.
        weights: how its datasets share it, see :func:`shares`.
        power: of sizes and effective frames.
        weight: factor of the group's share.
    """

    name: str
    weights: Weights = "effective"
    power: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_text(self.name, "the name of a group")
        _check_weight(self.weight, f"group {self.name!r}: weight")
        _check_weight(self.power, f"group {self.name!r}: power")


@dataclass(frozen=True)
class Mixture:
    """What a mixture's file says; see the files under ``examples/mixtures``.

    Attributes:
        name: for people.
        datasets, groups: each with a name of its own; a group that is not declared takes the
            defaults of :class:`Group`.
        extends: mixtures whose datasets and groups come first, relative to the file. What has the
            same name here replaces what it has there, and a key that is left out here is theirs.
        root: directory that the datasets' paths are relative to, itself relative to the file; by
            default the directory of the file that names the dataset. It also holds for what this
            file extends, so that one key moves everything.
        slot_map: the one map that all robots share: a name that ships or a TOML file relative to
            the mixture's; empty for the robots' own.
        target_rate: of datasets that have neither a stride nor a rate of their own [Hz].
        weights, power: how groups share the mixture, see :func:`shares`.
        short_episodes: what becomes of an episode with fewer steps than a chunk: its missing steps
            are masked, like those past any episode's end, or the dataset is refused.
        statistics: numbers are normalised by those of their own embodiment, or of all together.
    """

    name: str
    datasets: tuple[DatasetEntry, ...] = ()
    groups: tuple[Group, ...] = ()
    extends: tuple[str, ...] = ()
    root: str = ""
    slot_map: str = ""
    target_rate: float | None = None
    weights: Weights = "effective"
    power: float = 1.0
    short_episodes: Literal["mask", "refuse"] = "mask"
    statistics: Literal["embodiment", "all"] = "embodiment"

    def __post_init__(self) -> None:
        _check_text(self.name, "the name of a mixture")
        _check_weight(self.power, "power")
        if self.target_rate is not None and not self.target_rate > 0:
            raise ConfigError(f"target_rate is {self.target_rate}, expected more than 0 Hz")
        for what, entries in (("datasets", self.datasets), ("groups", self.groups)):
            names = [entry.name for entry in entries]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ConfigError(f"two {what} are called {twice!r}; give each its own name")

    def group(self, name: str) -> Group:
        """The group called ``name``, with the defaults if nobody declared it."""
        return next((group for group in self.groups if group.name == name), Group(name))


def single(path: Path, **entry: Any) -> Mixture:
    """The mixture of one dataset that draws every task equally often; ``entry`` as its fields."""
    name = path.name or "dataset"
    settings: dict[str, Any] = {"balance": "tasks", **entry}
    return Mixture(name, (DatasetEntry(name, str(path.absolute()), **settings),))


def read_mixture(path: Path, root: Path | None = None) -> Mixture:
    """Reads a mixture with all that it extends; the paths in the result are absolute.

    Args:
        root: takes the place of the file's ``root``.

    Raises:
        ConfigError: no TOML, an unknown or missing key, a cycle of ``extends``, a group that is
            declared but empty, or no dataset with a weight; each names file and key.
    """
    read = _read(path.absolute(), root.absolute() if root else None, ())
    if not read.datasets:
        raise ConfigError(f"{path}: datasets is empty; name at least one dataset")
    used = {entry.group for entry in read.datasets}
    for group in read.groups:
        if group.name not in used:
            raise ConfigError(
                f"{path}: group {group.name!r} has no dataset; the datasets' groups are"
                f" {', '.join(sorted(used))}"
            )
    if not any(e.weight and read.group(e.group).weight for e in read.datasets):
        raise ConfigError(
            f"{path}: weight is 0 for every dataset or its group; give at least one of them more"
        )
    return read


def _read(path: Path, root: Path | None, above: tuple[Path, ...]) -> Mixture:
    path = Path(os.path.normpath(path))
    if path in above or len(above) >= MOST_FILES:
        chain = " -> ".join(one.name for one in (*above, path))
        raise ConfigError(f"{above[-1]}: extends comes back to itself ({chain}); remove one link")
    values = read_toml(path)
    found = from_dict(Mixture, values, str(path))
    if root is None and found.root:
        root = path.parent / Path(found.root).expanduser()
    datasets: dict[str, DatasetEntry] = {}
    groups: dict[str, Group] = {}
    parents = [_read(path.parent / parent, root, (*above, path)) for parent in found.extends]
    for one in parents:
        datasets |= {entry.name: entry for entry in one.datasets}
        groups |= {group.name: group for group in one.groups}
    for entry in found.datasets:
        place = os.path.normpath((root or path.parent) / Path(entry.path).expanduser())
        robot = _beside(path, entry.embodiment)
        datasets[entry.name] = replace(entry, path=place, embodiment=robot)
    groups |= {group.name: group for group in found.groups}
    found = replace(found, slot_map=_beside(path, found.slot_map))
    kept = {key: getattr(one, key) for one in parents for key in _INHERITED if key not in values}
    whole = tuple(datasets.values()), tuple(groups.values())
    return replace(found, datasets=whole[0], groups=whole[1], extends=(), root="", **kept)


def _beside(path: Path, name: str) -> str:
    """A TOML file relative to the mixture's, or the name of something that ships."""
    return os.path.normpath(path.parent / name) if name.endswith(".toml") else name


def shares(mixture: Mixture, raw: Sequence[int], effective: Sequence[float]) -> tuple[float, ...]:
    """The share of every dataset; they add up to 1.

    A dataset has ``weight`` of its group for ``explicit``, ``weight * frames ** power`` for
    ``size`` and ``weight * effective_frames ** power`` for ``effective``; a group has the same of
    the mixture, with the frames of its datasets of weight above 0. A power of 1 and no weights draw
    every effective frame equally often.

    Args:
        raw, effective: frames of each dataset, and start frames that it contributes.

    Raises:
        ConfigError: every weight is 0, or a power is more than numbers can hold.
    """
    entries = mixture.datasets
    inside: dict[str, list[int]] = {}
    for i, entry in enumerate(entries):
        if entry.weight > 0:
            inside.setdefault(entry.group, []).append(i)
    found = [0.0] * len(entries)
    groups = {name: mixture.group(name) for name in inside}
    whole = {
        name: _share(
            group.weight,
            mixture.weights,
            mixture.power,
            sum(raw[i] for i in inside[name]),
            sum(effective[i] for i in inside[name]),
        )
        for name, group in groups.items()
    }
    total = sum(whole.values())
    if not total > 0:
        raise ConfigError(f"mixture {mixture.name!r}: weight is 0 for every dataset or its group")
    for name, group in groups.items():
        parts = {
            i: _share(entries[i].weight, group.weights, group.power, raw[i], effective[i])
            for i in inside[name]
        }
        for i, part in parts.items():
            found[i] = whole[name] / total * part / sum(parts.values())
    return tuple(found)


def _share(weight: float, how: Weights, power: float, raw: float, effective: float) -> float:
    if how == "explicit":
        return weight
    frames = float(raw if how == "size" else effective)
    try:
        return weight * frames**power
    except OverflowError:
        raise ConfigError(
            f"power is {power}, which is too much for {frames:g} frames; 1 draws by size, 0 equally"
        ) from None


def _check_text(value: str, what: str) -> None:
    if not value.strip() or not value.isprintable():
        raise ConfigError(f"{what} is {value!r}, expected printable characters")


def _check_weight(value: float, what: str) -> None:
    if not 0 <= value < 1e12:
        raise ConfigError(f"{what} is {value}, expected a number from 0 up")
