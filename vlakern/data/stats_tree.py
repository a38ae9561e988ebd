"""Statistics by task, embodiment and over all, and the choice among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vlakern.data.stats import SlotStats
from vlakern.errors import ConfigError, InputError
from vlakern.space.normalize import VectorStats

__all__ = ["Level", "StatsLevels", "StatsTree"]

Level = Literal["task", "embodiment", "all"]
# Embodiment and task; None for all of them.
Key = tuple[str | None, str | None]


class StatsTree:
    """One :class:`SlotStats` per task of an embodiment; every other level is merged from those.

    Args:
        names: one per slot, the same for all.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = SlotStats(names).names
        self._leaves: dict[tuple[str, str], SlotStats] = {}

    def add(
        self, embodiment: str, task: str, rows: np.ndarray, present: np.ndarray | None = None
    ) -> None:
        """Adds rows of one task; raises as :meth:`SlotStats.add`."""
        leaf = self._leaves.get((embodiment, task)) or SlotStats(self.names)
        leaf.add(rows, present)
        if leaf.rows:
            self._leaves[embodiment, task] = leaf

    def known(self) -> list[Key]:
        """Every level that has rows, as embodiment and task: all, embodiments, tasks."""
        embodiments = sorted({embodiment for embodiment, _ in self._leaves})
        every: list[Key] = [(None, None)] if self._leaves else []
        return [*every, *((name, None) for name in embodiments), *sorted(self._leaves)]

    def level(self, embodiment: str | None = None, task: str | None = None) -> SlotStats:
        """A task's statistics, or with ``None`` the merge over all tasks, or all embodiments.

        Raises:
            InputError: a task without its embodiment, or a level without rows.
        """
        _check_key(embodiment, task)
        merged = SlotStats(self.names)
        for (robot, work), leaf in sorted(self._leaves.items()):
            if embodiment in (None, robot) and task in (None, work):
                merged.merge(leaf)
        if not merged.rows:
            raise _unknown((embodiment, task), self.known())
        return merged

    def find(self, embodiment: str, task: str, at_least: int = 1) -> tuple[SlotStats, Level]:
        """The most specific level with enough rows, and which one that is.

        A task or embodiment that is not there has no rows. A row counts whatever slots it had; the
        result's ``present`` says which slots the level has.

        Raises:
            InputError: all together have fewer rows.
        """
        rows: dict[Key, int] = {}
        for (robot, work), leaf in self._leaves.items():
            for key in ((robot, work), (robot, None), (None, None)):
                rows[key] = rows.get(key, 0) + leaf.rows
        key, name = _choose(rows, embodiment, task, at_least)
        return self.level(*key), name

    def levels(self) -> "StatsLevels":
        """The results of every level."""
        found = {key: self.level(*key) for key in self.known()}
        return StatsLevels(
            self.names,
            {key: stats.result() for key, stats in found.items()},
            {key: stats.rows for key, stats in found.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """The results of every level as plain lists and numbers."""
        return self.levels().to_json()

    @staticmethod
    def from_json(values: Any, where: str) -> "StatsLevels":
        """The results again; rows can no longer be added to them."""
        return StatsLevels.from_json(values, where)


@dataclass(frozen=True)
class StatsLevels:
    """The results of a :class:`StatsTree`.

    Attributes:
        names: one per slot.
        stats, rows: per embodiment and task, None for all of them.
    """

    names: tuple[str, ...]
    stats: Mapping[Key, VectorStats]
    rows: Mapping[Key, int]

    def level(self, embodiment: str | None = None, task: str | None = None) -> VectorStats:
        """As :meth:`StatsTree.level`."""
        _check_key(embodiment, task)
        if (embodiment, task) not in self.stats:
            raise _unknown((embodiment, task), list(self.stats))
        return self.stats[embodiment, task]

    def find(self, embodiment: str, task: str, at_least: int = 1) -> tuple[VectorStats, Level]:
        """As :meth:`StatsTree.find`."""
        key, name = _choose(self.rows, embodiment, task, at_least)
        return self.stats[key], name

    def to_json(self) -> dict[str, Any]:
        """The inverse of :meth:`from_json`."""
        levels = []
        for (embodiment, task), stats in self.stats.items():
            values = stats.to_json()
            values.pop("names", None)
            rows = self.rows[embodiment, task]
            levels.append({"embodiment": embodiment, "task": task, "rows": rows, "stats": values})
        return {"names": list(self.names), "levels": levels}

    @classmethod
    def from_json(cls, values: Any, where: str) -> "StatsLevels":
        """Reads ``{"names": [...], "levels": [{"embodiment", "task", "rows", "stats"}, ...]}``.

        Raises:
            ConfigError: another structure, naming the place.
        """
        if not isinstance(values, Mapping) or not isinstance(values.get("levels"), list):
            raise ConfigError(f"{where}: expected an object with names and a list of levels")
        names = values.get("names")
        if not isinstance(names, list) or not names:
            raise ConfigError(f"{where}.names: expected a list of slot names")
        stats, rows = {}, {}
        for i, entry in enumerate(values["levels"]):
            place = f"{where}.levels[{i}]"
            key, count = _entry(entry, place)
            if key in stats:
                raise ConfigError(f"{place}: embodiment and task {key} are there twice")
            if not isinstance(entry.get("stats"), Mapping):
                raise ConfigError(f"{place}.stats: expected an object with mean, std, ...")
            stats[key] = VectorStats.from_json({**entry["stats"], "names": names}, f"{place}.stats")
            rows[key] = count
        return cls(tuple(names), stats, rows)


def _entry(entry: Any, place: str) -> tuple[Key, int]:
    """Embodiment, task and rows of one level."""
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{place}: expected an object, found {entry!r}")
    embodiment, task, rows = (entry.get(name) for name in ("embodiment", "task", "rows"))
    for name, value in (("embodiment", embodiment), ("task", task)):
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{place}.{name}: expected a name or null, found {value!r}")
    if embodiment is None and task is not None:
        raise ConfigError(f"{place}: task {task!r} has no embodiment")
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise ConfigError(f"{place}.rows: expected a number of rows, found {rows!r}")
    return (embodiment, task), rows


def _choose(
    rows: Mapping[Key, int], embodiment: str, task: str, at_least: int
) -> tuple[Key, Level]:
    if at_least < 1:
        raise InputError(f"at_least is {at_least}; statistics need one row or more")
    levels: tuple[tuple[Key, Level], ...] = (
        ((embodiment, task), "task"),
        ((embodiment, None), "embodiment"),
        ((None, None), "all"),
    )
    for key, name in levels:
        if rows.get(key, 0) >= at_least:
            return key, name
    raise InputError(
        f"all statistics together have {rows.get((None, None), 0)} rows, expected {at_least} for"
        f" {embodiment!r} doing {task!r}; collect more or ask for fewer"
    )


def _check_key(embodiment: str | None, task: str | None) -> None:
    if embodiment is None and task is not None:
        raise InputError(f"the task {task!r} needs its embodiment; tasks belong to one")


def _unknown(key: Key, known: Sequence[Key]) -> InputError:
    names = ", ".join(str(one) for one in known if (one[1] is None) == (key[1] is None)) or "none"
    return InputError(f"no statistics of embodiment and task {key}; there are: {names}")
