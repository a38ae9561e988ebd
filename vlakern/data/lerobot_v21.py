"""The catalogue of a LeRobot v2.0 or v2.1 dataset: a file an episode, tables in JSON lines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlakern.data.lerobot_info import Info, Place, read_json, read_lines, read_stats
from vlakern.errors import DatasetError

__all__ = ["Catalogue21"]

Stats = dict[str, dict[str, np.ndarray]]


class Catalogue21:
    """Where the episodes lie. Their files are looked at when an episode is asked for.

    Attributes:
        tasks: task index -> instruction.
        stats: feature -> statistic -> float64 array over the dataset; without quantiles where the
            dataset has only those of its episodes.
        lengths: instants of each episode.
    """

    def __init__(self, info: Info) -> None:
        """Raises: DatasetError: something missing, or two places that contradict each other."""
        self._info = info
        self.tasks = self._read_tasks()
        self._rows = self._read_episodes()
        self.lengths = [row["length"] for row in self._rows]
        # Rows of a file begin with the episode; only their index counts on.
        self._first = np.cumsum([0, *self.lengths]).tolist()
        self._stats = self._read_episode_stats()
        self.stats = self._read_stats()

    def place(self, i: int) -> Place:
        """Of episode ``i``, 0 <= i < len(lengths)."""
        row = self._rows[i]
        data = self._file("data_path", i)
        videos = {
            view.key: (self._file("video_path", i, video_key=view.key), 0)
            for view in self._info.views.values()
            if view.video
        }
        return Place(row["length"], data, 0, self._first[i], videos, tuple(row.get("tasks") or ()))

    def episode_stats(self, i: int) -> Stats:
        """feature -> statistic -> float64 array of one episode; {} where the dataset has none."""
        return self._stats.get(i, {})

    def _file(self, field: str, i: int, **numbers: Any) -> Path:
        chunk = i // self._chunk_size()
        return self._info.pattern(field, episode_chunk=chunk, episode_index=i, **numbers)

    def _chunk_size(self) -> int:
        size = self._info.fields.get("chunks_size", 1000)
        if not isinstance(size, int) or size < 1:
            raise DatasetError(f"{self._info.path}: chunks_size is {size!r}, expected 1 or more")
        return size

    def _read_tasks(self) -> dict[int, str]:
        path = self._info.root / "meta/tasks.jsonl"
        rows = list(read_lines(path))
        _check(path, rows, {"task_index": int, "task": str})
        return {row["task_index"]: row["task"] for row in rows}

    def _read_episodes(self) -> list[dict[str, Any]]:
        path, fields = self._info.root / "meta/episodes.jsonl", self._info.fields
        rows = list(read_lines(path))
        _check(path, rows, {"episode_index": int, "length": int})
        rows.sort(key=lambda row: row["episode_index"])
        if [row["episode_index"] for row in rows] != list(range(fields["total_episodes"])):
            raise DatasetError(
                f"{self._info.path}: total_episodes is {fields['total_episodes']} but {path} lists"
                f" {len(rows)}"
            )
        for row in rows:
            if row["length"] < 1:
                raise DatasetError(
                    f"{path}: episode {row['episode_index']} has length {row['length']}, expected"
                    " at least 1"
                )
        total = sum(row["length"] for row in rows)
        if total != fields["total_frames"]:
            raise DatasetError(
                f"{self._info.path}: total_frames is {fields['total_frames']} but {path} has"
                f" {total}"
            )
        return rows

    def _read_episode_stats(self) -> dict[int, Stats]:
        path = self._info.root / "meta/episodes_stats.jsonl"
        if self._info.version != "v2.1" and not path.is_file():
            return {}
        rows = list(read_lines(path))
        _check(path, rows, {"episode_index": int, "stats": dict})
        return {
            row["episode_index"]: read_stats(
                row["stats"], f"{path}: episode {row['episode_index']}"
            )
            for row in rows
        }

    def _read_stats(self) -> Stats:
        path = self._info.root / "meta/stats.json"
        if path.is_file():
            return read_stats(read_json(path), str(path))
        keys = dict.fromkeys(key for stats in self._stats.values() for key in stats)
        return {key: _merged([s[key] for s in self._stats.values() if key in s]) for key in keys}


def _check(path: Path, rows: list[dict[str, Any]], fields: Mapping[str, type]) -> None:
    for number, row in enumerate(rows, 1):
        for name, kind in fields.items():
            if not isinstance(row.get(name), kind):
                raise DatasetError(f"{path}, entry {number}: {name} is {row.get(name)!r}")


def _merged(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Of several parts: count, min, max, mean and deviation, as over all their rows at once."""
    if not all({"count", "min", "max", "mean", "std"} <= set(part) for part in parts):
        return {}
    count = np.array([float(part["count"].ravel()[0]) for part in parts])
    share = (count / count.sum()).reshape(-1, *(1,) * parts[0]["mean"].ndim)
    means = np.stack([part["mean"] for part in parts])
    mean = (share * means).sum(axis=0)
    spread = np.stack([part["std"] for part in parts]) ** 2 + (means - mean) ** 2
    return {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt((share * spread).sum(axis=0)),
        "count": np.array([count.sum()]),
    }
