"""LeRobot v3.0 datasets: the reader, and the writer under the same name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlakern.data.episode import Episode
from vlakern.data.lerobot_writer import IMAGE_PREFIX, VERSION, LeRobotWriter
from vlakern.data.video import read_frames, read_picture
from vlakern.errors import DatasetError

__all__ = ["LeRobotDataset", "LeRobotWriter"]

_INFO_FIELDS = (
    "codebase_version",
    "fps",
    "features",
    "total_episodes",
    "total_frames",
    "data_path",
    "video_path",
)
_EPISODE_COLUMNS = (
    "episode_index",
    "length",
    "dataset_from_index",
    "dataset_to_index",
    "data/chunk_index",
    "data/file_index",
)
_FRAME_COLUMNS = ("observation.state", "action", "index", "episode_index", "task_index")
_VIDEO_FIELDS = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")


class LeRobotDataset:
    """A dataset on disk. Tables are read and checked at once, pictures when asked for.

    Attributes:
        fps: instants per second [Hz].
        views: view -> (height, width) [pixels].
        tasks: task index -> instruction.
        stats: feature -> statistic -> float64 array, as the dataset states them.
    """

    def __init__(self, root: str | Path) -> None:
        """Opens ``root``.

        Raises:
            DatasetError: something is missing, truncated or contradicts itself; the message names
                the file and the field.
        """
        self.root = Path(root)
        self._info = self._read_info()
        self.fps = float(self._info["fps"])
        features: Mapping[str, Any] = self._info["features"]
        self.views: dict[str, tuple[int, int]] = {
            key.removeprefix(IMAGE_PREFIX): tuple(feature["shape"][:2])
            for key, feature in features.items()
            if feature.get("dtype") == "video"
        }
        self._widths = {key: self._width(key) for key in ("observation.state", "action")}
        self.stats = self._read_stats()
        self.tasks = self._read_tasks()
        self._episodes = self._read_episodes()
        self._tables: dict[Path, dict[str, np.ndarray]] = {}
        self._check_totals()

    @property
    def robot_type(self) -> str:
        """What the dataset calls its robot."""
        return str(self._info.get("robot_type", "unknown"))

    @property
    def state_names(self) -> list[str]:
        """One name per state number."""
        return self._names("observation.state")

    @property
    def action_names(self) -> list[str]:
        """One name per action number."""
        return self._names("action")

    @property
    def num_episodes(self) -> int:
        """Demonstrations in the dataset."""
        return len(self._episodes)

    @property
    def num_frames(self) -> int:
        """Instants over all episodes."""
        return int(self._info["total_frames"])

    @property
    def lengths(self) -> list[int]:
        """Instants of each episode."""
        return [row["length"] for row in self._episodes]

    def episode(self, i: int) -> Episode:
        """Episode ``i`` (0 <= i < num_episodes) without its pictures."""
        row = self._row(i)
        path = self._data_path(row)
        if path not in self._tables:
            self._tables[path] = self._read_frame_table(path)
        table = self._tables[path]
        first = row["dataset_from_index"] - int(table["index"][0])
        part = slice(first, first + row["length"])
        if (
            first < 0
            or (table["episode_index"][part] != i).any()
            or (len(table["index"][part]) != row["length"])
        ):
            raise DatasetError(
                f"{path} does not hold the {row['length']} rows of episode {i} from index "
                f"{row['dataset_from_index']}; the file or the episode table is damaged"
            )
        task_index = int(table["task_index"][first])
        if task_index not in self.tasks:
            raise DatasetError(f"{path}: task_index {task_index} is not in meta/tasks.parquet")
        states, actions = table["observation.state"][part], table["action"][part]
        task = self.tasks[task_index]
        return Episode(i, task, states, actions, {"task": task})

    def frames(self, i: int, view: str) -> np.ndarray:
        """Every picture of ``view`` in episode ``i``: uint8 ``[T, H, W, 3]`` RGB.

        Raises:
            DatasetError: a view that is not there, a file that cannot be decoded, a missing frame.
        """
        path, first, length = self._clip(i, view)
        frames = read_frames(path, first, length, self.fps)
        self._check_size(path, view, frames.shape[1:3])
        return frames

    def picture(self, i: int, view: str, frame: int) -> np.ndarray:
        """Picture ``frame`` of ``view`` in episode ``i``: uint8 ``[H, W, 3]`` RGB.

        Raises as :meth:`frames`, and for a frame that the episode does not have.
        """
        path, first, length = self._clip(i, view)
        if not 0 <= frame < length:
            raise DatasetError(f"{self.root}: episode {i} has frames 0..{length - 1}, not {frame}")
        picture = read_picture(path, first + frame, self.fps)
        self._check_size(path, view, picture.shape[:2])
        return picture

    def _clip(self, i: int, view: str) -> tuple[Path, int, int]:
        """The video of an episode: file, number of its first frame, frames."""
        if view not in self.views:
            raise DatasetError(f"{self.root} has no view {view!r}; it has {sorted(self.views)}")
        row = self._row(i)
        first = round(row[f"videos/{IMAGE_PREFIX}{view}/from_timestamp"] * self.fps)
        return self._video_path(row, view), first, row["length"]

    def _check_size(self, path: Path, view: str, size: tuple[int, ...]) -> None:
        if size != self.views[view]:
            raise DatasetError(f"{path} has frames {size}, meta/info.json says {self.views[view]}")

    def _names(self, key: str) -> list[str]:
        """The names of a feature's numbers, numbered where the dataset gives none."""
        names = self._info["features"][key].get("names")
        if isinstance(names, list) and len(names) == self._widths[key]:
            return [str(name) for name in names]
        return [f"{key}.{i}" for i in range(self._widths[key])]

    def _row(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self._episodes):
            raise DatasetError(f"{self.root} has episodes 0..{len(self._episodes) - 1}, not {i}")
        return self._episodes[i]

    def _data_path(self, row: Mapping[str, Any]) -> Path:
        return self._path(
            "data_path", chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )

    def _video_path(self, row: Mapping[str, Any], view: str) -> Path:
        key = IMAGE_PREFIX + view
        return self._path(
            "video_path",
            video_key=key,
            chunk_index=row[f"videos/{key}/chunk_index"],
            file_index=row[f"videos/{key}/file_index"],
        )

    def _path(self, field: str, **numbers: Any) -> Path:
        """The file that the pattern ``field`` of meta/info.json gives for ``numbers``."""
        pattern = self._info[field]
        try:
            return self.root / str(pattern).format(**numbers)
        except (KeyError, IndexError, ValueError) as error:
            raise DatasetError(
                f"{self.root}/meta/info.json: {field} is {pattern!r}, expected a pattern of"
                f" {', '.join(numbers)}"
            ) from error

    def _read_info(self) -> dict[str, Any]:
        path = self.root / "meta/info.json"
        info = _read_json(path)
        missing = [key for key in _INFO_FIELDS if key not in info]
        if missing:
            raise DatasetError(f"{path} lacks the field {missing[0]!r}")
        if info["codebase_version"] != VERSION:
            raise DatasetError(
                f"{path}: codebase_version is {info['codebase_version']!r}, expected {VERSION!r}; "
                "convert the dataset first"
            )
        if not isinstance(info["fps"], (int, float)) or info["fps"] <= 0:
            raise DatasetError(f"{path}: fps is {info['fps']!r}, expected a positive number")
        return info

    def _width(self, key: str) -> int:
        feature = self._info["features"].get(key)
        if not feature or len(feature.get("shape", ())) != 1:
            raise DatasetError(f"{self.root}/meta/info.json: features lacks the vector {key!r}")
        return int(feature["shape"][0])

    def _read_stats(self) -> dict[str, dict[str, np.ndarray]]:
        stats = _read_json(self.root / "meta/stats.json")
        return {
            key: {name: np.asarray(value, dtype=np.float64) for name, value in entry.items()}
            for key, entry in stats.items()
        }

    def _read_tasks(self) -> dict[int, str]:
        path = self.root / "meta/tasks.parquet"
        table = _read_parquet(path)
        # Without a name pandas stores an index under this one.
        name = "task" if "task" in table.column_names else "__index_level_0__"
        _require_columns(path, table, ("task_index", name))
        keys, texts = table["task_index"].to_pylist(), table[name].to_pylist()
        return dict(zip(keys, texts, strict=True))

    def _read_episodes(self) -> list[dict[str, Any]]:
        paths = sorted(self.root.glob("meta/episodes/*/*.parquet"))
        if not paths:
            raise DatasetError(f"{self.root}/meta/episodes holds no parquet file")
        videos = [f"videos/{IMAGE_PREFIX}{v}/{f}" for v in self.views for f in _VIDEO_FIELDS]
        wanted = [*_EPISODE_COLUMNS, *videos]
        rows: list[dict[str, Any]] = []
        for path in paths:
            table = _read_parquet(path)
            _require_columns(path, table, wanted)
            rows += table.select(wanted).to_pylist()
        rows.sort(key=lambda row: row["episode_index"])
        return rows

    def _check_totals(self) -> None:
        where, info = f"{self.root}/meta/info.json", self._info
        indices = [row["episode_index"] for row in self._episodes]
        if indices != list(range(info["total_episodes"])):
            raise DatasetError(
                f"{where}: total_episodes is {info['total_episodes']} but meta/episodes lists "
                f"{len(indices)}"
            )
        total = sum(row["length"] for row in self._episodes)
        if total != info["total_frames"]:
            raise DatasetError(
                f"{where}: total_frames is {info['total_frames']} but the episodes have {total}"
            )
        for row in self._episodes:
            self._check_row(row)
        stored = sum(_count_rows(path) for path in {self._data_path(r) for r in self._episodes})
        if stored != total:
            raise DatasetError(f"{self.root}/data has {stored} rows, meta/info.json says {total}")

    def _check_row(self, row: Mapping[str, Any]) -> None:
        where = f"{self.root}/meta/episodes: episode {row['episode_index']}"
        if row["dataset_to_index"] - row["dataset_from_index"] != row["length"]:
            raise DatasetError(f"{where} has length {row['length']} but another index range")
        for view in self.views:
            key = f"videos/{IMAGE_PREFIX}{view}"
            seconds = row[f"{key}/to_timestamp"] - row[f"{key}/from_timestamp"]
            if round(seconds * self.fps) != row["length"]:
                raise DatasetError(
                    f"{where} has length {row['length']} but its {key} lasts {seconds:.4f} s"
                )
            if not self._video_path(row, view).is_file():
                raise DatasetError(f"{self._video_path(row, view)} is missing")

    def _read_frame_table(self, path: Path) -> dict[str, np.ndarray]:
        table = _read_parquet(path)
        _require_columns(path, table, _FRAME_COLUMNS)
        columns = {
            key: table[key].combine_chunks().to_numpy(zero_copy_only=False)
            for key in ("index", "episode_index", "task_index")
        }
        for key, width in self._widths.items():
            values = table[key].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            if values.size != len(table) * width:
                raise DatasetError(f"{path}: {key} is not {width} numbers a row everywhere")
            columns[key] = values.astype(np.float32).reshape(len(table), width)
            if not np.isfinite(columns[key]).all():
                raise DatasetError(f"{path}: {key} has an entry that is not finite")
        return columns


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing; is this a LeRobot v3.0 dataset?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def _read_parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        return parquet.ParquetFile(path).read()
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} is not a whole parquet file ({error})") from error


def _count_rows(path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        return parquet.read_metadata(path).num_rows
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} is not a whole parquet file ({error})") from error


def _require_columns(path: Path, table: Any, names: Any) -> None:
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise DatasetError(f"{path} lacks the column {missing[0]!r}")
