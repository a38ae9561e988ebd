"""Writes LeRobot v3.0 datasets: parquet tables and H.264 videos, complete or not at all."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vlakern.data.lerobot_info import IMAGE_PREFIX
from vlakern.data.stats import PictureStats, vector_stats
from vlakern.data.video import VideoWriter
from vlakern.errors import DatasetError, InputError
from vlakern.files import atomic_directory, write_json

__all__ = ["DATA_PATH", "EPISODES_PATH", "VERSION", "VIDEO_PATH", "LeRobotWriter"]

VERSION = "v3.0"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_FILES_PER_CHUNK = 1000
_ROWS_PER_GROUP = 1 << 15
_INDEX_COLUMNS = ("frame_index", "episode_index", "index", "task_index")


class LeRobotWriter:
    """A context manager: episodes go to a temporary directory that becomes ``root`` at the end.

    Leaving the block by an exception leaves nothing on disk. A video file takes episodes until it
    holds ``video_megabytes``; tables are small and stay in memory until ``finalize``.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        fps: float,
        views: Mapping[str, tuple[int, int]],
        state_names: Sequence[str],
        action_names: Sequence[str],
        robot_type: str,
        overwrite: bool = False,
        pixel_format: str = "yuv420p",
        video_megabytes: float = 200.0,
    ) -> None:
        """Args: fps: [Hz]; views: name -> (height, width) [pixels]; pixel_format: of
            the videos, see ``vlakern.data.video``.

        Raises:
            DatasetError: ``root`` exists and ``overwrite`` is not set, or is not a dataset.
        """
        if Path(root).exists() and not overwrite:
            raise DatasetError(f"{root} exists; choose another directory or --overwrite it")
        if Path(root).exists() and not (Path(root) / "meta/info.json").is_file():
            raise DatasetError(
                f"{root} exists and is not a dataset, so it is not overwritten; choose another"
                " directory"
            )
        self._target = Path(root)
        self._fps = fps
        self._pixel_format = pixel_format
        self._views = dict(views)
        self._names = {"observation.state": list(state_names), "action": list(action_names)}
        self._robot_type = robot_type
        self._limit = video_megabytes * 1e6
        self._stack = ExitStack()
        self._root: Path | None = None
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._episode_stats: list[dict[str, Any]] = []
        self._rows: dict[str, list[np.ndarray]] = {"observation.state": [], "action": []}
        self._stats = {view: PictureStats() for view in self._views}
        self._videos: dict[str, VideoWriter] = {}
        self._file_index = dict.fromkeys(self._views, -1)
        self._frames = 0

    def __enter__(self) -> "LeRobotWriter":
        self._root = self._stack.enter_context(atomic_directory(self._target))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            if error is None:
                self.finalize()
            else:
                self._close_videos()
                # The directory's own context must see the failure, or it would keep the half.
                self._stack.__exit__(kind, error, trace)

    def add_episode(
        self, images: Mapping[str, np.ndarray], states: np.ndarray, actions: np.ndarray, task: str
    ) -> None:
        """Appends T >= 1 instants.

        Args:
            images: view -> uint8 ``[T, H, W, 3]`` RGB.
            states: float32 ``[T, S]``.
            actions: float32 ``[T, A]``.
            task: the instruction in words.

        Raises:
            InputError: a missing view, or shapes, dtypes or values that do not fit; nothing of
                the episode is written then.
        """
        length = len(states)
        self._check(images, {"observation.state": states, "action": actions}, length)
        row: dict[str, Any] = {
            "episode_index": len(self._episodes),
            "tasks": [task],
            "length": length,
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        self._tasks.setdefault(task, len(self._tasks))
        self._episode_stats.append(self._stats_of(images, states, actions, self._tasks[task]))
        for view, frames in images.items():
            row |= self._add_video(view, frames)
        self._rows["observation.state"].append(states.astype(np.float32))
        self._rows["action"].append(actions.astype(np.float32))
        self._episodes.append(row)
        self._frames += length

    def finalize(self) -> None:
        """Closes the videos and writes every table; leaving the block does this by itself."""
        if not self._episodes:
            raise DatasetError(f"{self._target} would hold no episode; add at least one")
        self._close_videos()
        import pyarrow.parquet as parquet

        root = self._open_root()
        tables = {
            DATA_PATH: self._frame_table(),
            EPISODES_PATH: self._episode_table(),
            "meta/tasks.parquet": self._task_table(),
        }
        for pattern, table in tables.items():
            path = root / pattern.format(chunk_index=0, file_index=0)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Readers decode a row group at a time, and find a flipped bit by its page's checksum.
            parquet.write_table(
                table, path, row_group_size=_ROWS_PER_GROUP, write_page_checksum=True
            )
        write_json(root / "meta/stats.json", self._all_stats())
        write_json(root / "meta/info.json", self._info())

    def _open_root(self) -> Path:
        if self._root is None:
            raise DatasetError(f"{self._target} is not open; use the writer in a `with` block")
        return self._root

    def _check(
        self, images: Mapping[str, np.ndarray], vectors: Mapping[str, np.ndarray], length: int
    ) -> None:
        self._open_root()
        if set(images) != set(self._views):
            raise InputError(f"episode has views {sorted(images)}, expected {sorted(self._views)}")
        for view, size in self._views.items():
            expected = (length, *size, 3)
            if images[view].shape != expected or images[view].dtype != np.uint8:
                found = f"{images[view].dtype} {images[view].shape}"
                raise InputError(f"view {view!r} is {found}, expected uint8 {expected}")
        for key, value in vectors.items():
            expected = (length, len(self._names[key]))
            if value.shape != expected or length == 0:
                raise InputError(f"{key} has shape {value.shape}, expected {expected} and T >= 1")
            if not np.isfinite(value).all():
                raise InputError(f"{key} has an entry that is not finite")

    def _add_video(self, view: str, frames: np.ndarray) -> dict[str, Any]:
        """Appends to the view's current file, or to the next one when that is full."""
        root, key = self._open_root(), IMAGE_PREFIX + view
        if view not in self._videos or self._videos[view].bytes >= self._limit:
            if view in self._videos:
                self._videos.pop(view).close()
            self._file_index[view] += 1
            path = self._video_path(root, view)
            self._videos[view] = VideoWriter(
                path, self._fps, *self._views[view], self._pixel_format
            )
        video = self._videos[view]
        start = video.frames
        video.append(frames)
        self._stats[view].add(frames)
        chunk, file = divmod(self._file_index[view], _FILES_PER_CHUNK)
        return {
            f"videos/{key}/chunk_index": chunk,
            f"videos/{key}/file_index": file,
            f"videos/{key}/from_timestamp": start / self._fps,
            f"videos/{key}/to_timestamp": video.frames / self._fps,
        }

    def _video_path(self, root: Path, view: str) -> Path:
        chunk, file = divmod(self._file_index[view], _FILES_PER_CHUNK)
        key = IMAGE_PREFIX + view
        return root / VIDEO_PATH.format(video_key=key, chunk_index=chunk, file_index=file)

    def _close_videos(self) -> None:
        while self._videos:
            self._videos.popitem()[1].close()

    def _stats_of(
        self,
        images: Mapping[str, np.ndarray],
        states: np.ndarray,
        actions: np.ndarray,
        task_index: int,
    ) -> dict[str, Any]:
        """``stats/<feature>/<statistic>`` of the episode that is next."""
        length, episode = len(states), len(self._episodes)
        frame = np.arange(length)
        columns = {
            "observation.state": states,
            "action": actions,
            "timestamp": (frame / self._fps)[:, None],
            "frame_index": frame[:, None],
            "episode_index": np.full((length, 1), episode),
            "index": (self._frames + frame)[:, None],
            "task_index": np.full((length, 1), task_index),
        }
        stats = {key: vector_stats(value) for key, value in columns.items()}
        for key in _INDEX_COLUMNS:
            # LeRobot keeps whole numbers whole here.
            stats[key] |= {name: stats[key][name].astype(np.int64) for name in ("min", "max")}
        for view, frames in images.items():
            pictures = PictureStats()
            pictures.add(frames)
            stats[IMAGE_PREFIX + view] = pictures.result()
        return {
            f"stats/{key}/{name}": value.tolist()
            for key, entry in stats.items()
            for name, value in entry.items()
        }

    def _index_columns(self) -> dict[str, np.ndarray]:
        lengths = [row["length"] for row in self._episodes]
        frame = np.concatenate([np.arange(length) for length in lengths])
        tasks = [self._tasks[row["tasks"][0]] for row in self._episodes]
        return {
            "timestamp": (frame / self._fps).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.repeat(np.arange(len(lengths)), lengths),
            "index": np.arange(self._frames),
            "task_index": np.repeat(tasks, lengths),
        }

    def _frame_table(self) -> Any:
        import pyarrow as pa

        columns: dict[str, Any] = {}
        for key, rows in self._rows.items():
            flat = pa.array(np.concatenate(rows).ravel(), pa.float32())
            columns[key] = pa.FixedSizeListArray.from_arrays(flat, len(self._names[key]))
        return pa.table({**columns, **self._index_columns()})

    def _episode_table(self) -> Any:
        import pyarrow as pa

        rows = zip(self._episodes, self._episode_stats, strict=True)
        return pa.Table.from_pylist([{**row, **stats} for row, stats in rows])

    def _task_table(self) -> Any:
        """Columns ``task_index`` and ``task``; the metadata makes ``task`` the index in pandas."""
        import pyarrow as pa

        columns = [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64"},
            {"name": "task", "field_name": "task", "pandas_type": "unicode"},
        ]
        numpy_types = ("int64", "object")
        pandas = {
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [
                {**column, "numpy_type": kind, "metadata": None}
                for column, kind in zip(columns, numpy_types, strict=True)
            ],
            "pandas_version": "2.0.0",
        }
        table = pa.table({"task_index": list(self._tasks.values()), "task": list(self._tasks)})
        return table.replace_schema_metadata({"pandas": json.dumps(pandas)})

    def _all_stats(self) -> dict[str, Any]:
        index = {key: value[:, None] for key, value in self._index_columns().items()}
        vectors = {key: np.concatenate(rows) for key, rows in self._rows.items()} | index
        stats = {key: vector_stats(value) for key, value in vectors.items()}
        for view in self._views:
            stats[IMAGE_PREFIX + view] = self._stats[view].result()
        return {
            key: {name: value.tolist() for name, value in entry.items()}
            for key, entry in stats.items()
        }

    def _info(self) -> dict[str, Any]:
        return {
            "codebase_version": VERSION,
            "robot_type": self._robot_type,
            "total_episodes": len(self._episodes),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": _FILES_PER_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": round(self._limit / 1e6),
            "fps": int(self._fps) if float(self._fps).is_integer() else self._fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": self._features(),
        }

    def _features(self) -> dict[str, Any]:
        features: dict[str, Any] = {
            key: {"dtype": "float32", "shape": [len(names)], "names": names}
            for key, names in self._names.items()
        }
        for view, size in self._views.items():
            features[IMAGE_PREFIX + view] = {
                "dtype": "video",
                "shape": [*size, 3],
                "names": ["height", "width", "channels"],
                "info": _video_info(*size, self._fps, self._pixel_format),
            }
        features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
        for key in _INDEX_COLUMNS:
            features[key] = {"dtype": "int64", "shape": [1], "names": None}
        return features


def _video_info(height: int, width: int, fps: float, pixel_format: str) -> dict[str, Any]:
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": "h264",
        "video.pix_fmt": pixel_format,
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
    }
