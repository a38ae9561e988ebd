"""The catalogue of a LeRobot v3.0 dataset: many episodes to a file, tables in parquet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlakern.data.lerobot_info import Info, Place, read_json, read_stats
from vlakern.data.lerobot_table import read_table, row_count
from vlakern.data.pool import Recent
from vlakern.errors import DatasetError

__all__ = ["Catalogue30"]

_COLUMNS = (
    "episode_index",
    "length",
    "dataset_from_index",
    "dataset_to_index",
    "data/chunk_index",
    "data/file_index",
)
_VIDEO_FIELDS = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")


class Catalogue30:
    """Where the episodes lie; read at once and held against the files.

    Attributes:
        tasks: task index -> instruction.
        stats: feature -> statistic -> float64 array, over the dataset.
        lengths: instants of each episode.
    """

    def __init__(self, info: Info) -> None:
        """Raises: DatasetError: something missing, or two places that contradict each other."""
        self._info = info
        path = info.root / "meta/stats.json"
        self.stats = read_stats(read_json(path), str(path))
        self.tasks = self._read_tasks()
        self._videos = [view.key for view in info.views.values() if view.video]
        self._rows = self._read_episodes()
        self._check_totals()
        self._first = self._first_indices()
        self.lengths = [row["length"] for row in self._rows]
        self._stats_tables: Recent[Path, Any] = Recent(1)
        self._places: dict[int, Place] = {}

    def place(self, i: int) -> Place:
        """Of episode ``i``, 0 <= i < len(lengths)."""
        if i not in self._places:
            self._places[i] = self._find(self._rows[i])
        return self._places[i]

    def episode_stats(self, i: int) -> dict[str, dict[str, np.ndarray]]:
        """feature -> statistic -> float64 array of one episode; {} where the dataset has none."""
        path, number = self._rows[i]["file"], self._rows[i]["row"]
        table = self._stats_tables.get(path, lambda: read_table(path, ["length"], "stats/"))
        row = table.slice(number, 1).to_pylist()[0]
        stats: dict[str, dict[str, Any]] = {}
        for column, value in row.items():
            if column.startswith("stats/") and value is not None:
                feature, _, name = column.removeprefix("stats/").rpartition("/")
                stats.setdefault(feature, {})[name] = value
        return read_stats(stats, f"{path}: episode {i}")

    def _find(self, row: Mapping[str, Any]) -> Place:
        data = self._data_path(row)
        index = row["dataset_from_index"]
        videos = {
            key: (
                self._video_path(row, key),
                round(row[f"videos/{key}/from_timestamp"] * self._info.fps),
            )
            for key in self._videos
        }
        tasks = tuple(row.get("tasks") or ())
        return Place(row["length"], data, index - self._first[data], index, videos, tasks)

    def _data_path(self, row: Mapping[str, Any]) -> Path:
        numbers = {name: row[f"data/{name}"] for name in ("chunk_index", "file_index")}
        return self._info.pattern("data_path", **numbers)

    def _video_path(self, row: Mapping[str, Any], key: str) -> Path:
        numbers = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
        return self._info.pattern("video_path", video_key=key, **numbers)

    def _read_tasks(self) -> dict[int, str]:
        path = self._info.root / "meta/tasks.parquet"
        table = read_table(path)
        # Without a name pandas stores an index under this one.
        name = "task" if "task" in table.column_names else "__index_level_0__"
        missing = [one for one in ("task_index", name) if one not in table.column_names]
        if missing:
            raise DatasetError(f"{path} lacks the column {missing[0]!r}")
        return dict(zip(table["task_index"].to_pylist(), table[name].to_pylist(), strict=True))

    def _read_episodes(self) -> list[dict[str, Any]]:
        root = self._info.root
        paths = sorted(root.glob("meta/episodes/*/*.parquet"))
        if not paths:
            raise DatasetError(f"{root}/meta/episodes holds no parquet file")
        wanted = [*_COLUMNS, *(f"videos/{v}/{f}" for v in self._videos for f in _VIDEO_FIELDS)]
        rows: list[dict[str, Any]] = []
        for path in paths:
            table = read_table(path, wanted, prefix="tasks")
            for number, row in enumerate(table.to_pylist()):
                self._check_filled(path, row, wanted)
                rows.append({**row, "file": path, "row": number})
        rows.sort(key=lambda row: row["episode_index"])
        return rows

    def _check_filled(self, path: Path, row: Mapping[str, Any], wanted: list[str]) -> None:
        empty = [name for name in wanted if not isinstance(row[name], (int, float))]
        if empty:
            raise DatasetError(
                f"{path}: episode {row['episode_index']} has {row[empty[0]]!r} as {empty[0]}"
            )

    def _first_indices(self) -> dict[Path, int]:
        """Global index of the first row of each data file."""
        first: dict[Path, int] = {}
        for row in self._rows:
            path = self._data_path(row)
            first[path] = min(first.get(path, row["dataset_from_index"]), row["dataset_from_index"])
        return first

    def _check_totals(self) -> None:
        where, fields = str(self._info.path), self._info.fields
        indices = [row["episode_index"] for row in self._rows]
        if indices != list(range(fields["total_episodes"])):
            raise DatasetError(
                f"{where}: total_episodes is {fields['total_episodes']} but meta/episodes lists "
                f"{len(indices)}"
            )
        total = sum(row["length"] for row in self._rows)
        if total != fields["total_frames"]:
            raise DatasetError(
                f"{where}: total_frames is {fields['total_frames']} but the episodes have {total}"
            )
        videos = {self._video_path(row, key) for row in self._rows for key in self._videos}
        for path in sorted(videos):
            if not path.is_file():
                raise DatasetError(f"{path} is missing")
        for row in self._rows:
            self._check_row(row)
        stored = sum(row_count(path) for path in {self._data_path(row) for row in self._rows})
        if stored != total:
            raise DatasetError(
                f"{self._info.root}/data has {stored} rows, meta/info.json says {total}"
            )

    def _check_row(self, row: Mapping[str, Any]) -> None:
        where = f"{self._info.root}/meta/episodes: episode {row['episode_index']}"
        if row["length"] < 1:
            raise DatasetError(f"{where} has length {row['length']}, expected at least 1")
        if row["dataset_to_index"] - row["dataset_from_index"] != row["length"]:
            raise DatasetError(f"{where} has length {row['length']} but another index range")
        for key in self._videos:
            seconds = row[f"videos/{key}/to_timestamp"] - row[f"videos/{key}/from_timestamp"]
            if round(seconds * self._info.fps) != row["length"]:
                raise DatasetError(
                    f"{where} has length {row['length']} but its videos/{key} lasts {seconds:.4f} s"
                    f" at the {self._info.fps:g} Hz of {self._info.path}"
                )
