"""LeRobot datasets, v3.0 and v2.1: the reader, and the writer (v3.0) under the same name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlakern.data.episode import Episode
from vlakern.data.image import decode_image
from vlakern.data.lerobot_info import Info, Place, View
from vlakern.data.lerobot_table import FrameTables
from vlakern.data.lerobot_v21 import Catalogue21
from vlakern.data.lerobot_v30 import Catalogue30
from vlakern.data.lerobot_writer import VERSION, LeRobotWriter
from vlakern.data.video import read_frames, read_picture
from vlakern.errors import DatasetError, InputError

__all__ = ["LeRobotDataset", "LeRobotWriter"]

_CATALOGUES = {VERSION: Catalogue30, "v2.1": Catalogue21, "v2.0": Catalogue21}
_SCALARS = ("index", "episode_index", "task_index")
# Of the time between two rows; recorders round their clocks.
_CLOCK_TOLERANCE = 0.02


class LeRobotDataset:
    """A dataset on disk. Its catalogue is read and checked at once, rows and pictures when wanted.

    Rows come from memory-mapped parquet files, pictures from videos or from the rows themselves.
    May be pickled, and used by several threads.

    Attributes:
        root: the dataset's directory.
        fps: instants per second [Hz].
        views: view -> (height, width) [pixels]; the feature's name less ``observation.images.``.
        tasks: task index -> instruction.
        stats: feature -> statistic -> float64 array, as the dataset states them.
        lengths: instants of each episode.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        state: str | Sequence[str] = "observation.state",
        action: str | Sequence[str] = "action",
    ) -> None:
        """Opens ``root``.

        Args:
            state: feature that is the state; several are joined in this order.
            action: the same of the action.

        Raises:
            DatasetError: something is missing, truncated or contradicts itself; the message names
                the file and the field.
        """
        self.root = Path(root)
        self._info = Info(self.root)
        version = self._info.version
        if version not in _CATALOGUES:
            raise DatasetError(
                f"{self._info.path}: codebase_version is {version!r}, expected one of"
                f" {', '.join(_CATALOGUES)}; convert the dataset first"
            )
        self.fps = self._info.fps
        self._state, self._action = _keys("state", state), _keys("action", action)
        widths = {key: self._info.width(key) for key in (*self._state, *self._action)}
        self._views = self._info.views
        self.views = {name: view.size for name, view in self._views.items()}
        self._catalogue = _CATALOGUES[version](self._info)
        self.stats, self.tasks = self._catalogue.stats, self._catalogue.tasks
        self.lengths: list[int] = self._catalogue.lengths
        self._tables = FrameTables(widths, _SCALARS, [*self._info.texts, "timestamp"])

    @property
    def robot_type(self) -> str:
        """What the dataset calls its robot."""
        return str(self._info.fields.get("robot_type") or "unknown")

    @property
    def state_names(self) -> list[str]:
        """One name per state number."""
        return self._names(self._state)

    @property
    def action_names(self) -> list[str]:
        """One name per action number."""
        return self._names(self._action)

    @property
    def num_episodes(self) -> int:
        """Demonstrations in the dataset."""
        return len(self.lengths)

    @property
    def num_frames(self) -> int:
        """Instants over all episodes."""
        return int(self._info.fields["total_frames"])

    def episode(self, i: int) -> Episode:
        """Episode ``i`` (0 <= i < num_episodes) without its pictures.

        ``instructions`` has ``task``, ``task 2`` and so on where the episode has several, and the
        text features as its first row has them.

        Raises:
            DatasetError: damaged or contradicting rows; the message names file and column.
        """
        place = self._place(i)
        rows = self._rows(i, place)
        task_index = int(rows["task_index"][0])
        if task_index not in self.tasks:
            raise DatasetError(
                f"{place.data}: task_index {task_index} is not in {self.root}/meta/tasks"
            )
        task = self.tasks[task_index]
        others = [text for text in place.tasks if text != task]
        instructions = {"task": task, **{f"task {k}": text for k, text in enumerate(others, 2)}}
        for key in self._info.texts:
            text = rows[key][0].as_py() if key in rows else None
            instructions |= {key: text} if text else {}
        states, actions = (
            np.concatenate([rows[key] for key in keys], axis=1)
            for keys in (self._state, self._action)
        )
        return Episode(i, task, states, actions, instructions)

    def episode_stats(self, i: int) -> dict[str, dict[str, np.ndarray]]:
        """feature -> statistic -> float64 array of episode ``i``; {} where the dataset has none."""
        self._place(i)
        return self._catalogue.episode_stats(i)

    def frames(self, i: int, view: str) -> np.ndarray:
        """Every picture of ``view`` in episode ``i``: uint8 ``[T, H, W, 3]`` RGB.

        Raises:
            DatasetError: a view that is not there, a file that cannot be decoded, a missing frame.
        """
        place, camera = self._place(i), self._view(view)
        if not camera.video:
            return np.stack([self._image(place, camera, k) for k in range(place.length)])
        path, first = place.videos[camera.key]
        frames = read_frames(path, first, place.length, self.fps)
        self._check_size(str(path), camera, frames.shape[1:3])
        return frames

    def picture(self, i: int, view: str, frame: int) -> np.ndarray:
        """Picture ``frame`` of ``view`` in episode ``i``: uint8 ``[H, W, 3]`` RGB.

        Raises as :meth:`frames`, and for a frame that the episode does not have.
        """
        place, camera = self._place(i), self._view(view)
        if not 0 <= frame < place.length:
            raise DatasetError(
                f"{self.root}: episode {i} has frames 0..{place.length - 1}, not {frame}"
            )
        if not camera.video:
            return self._image(place, camera, frame)
        path, first = place.videos[camera.key]
        picture = read_picture(path, first + frame, self.fps)
        self._check_size(str(path), camera, picture.shape[:2])
        return picture

    def absent(self) -> list[str]:
        """Declared features, videos aside, that are no column of the first, middle or last file."""
        last = len(self.lengths) - 1
        files = {self._place(i).data for i in {0, last // 2, last}} if self.lengths else set()
        there = {name for path in files for name in self._tables.columns(path)}
        features = self._info.features.items()
        return [key for key, f in features if f.get("dtype") != "video" and key not in there]

    def _place(self, i: int) -> Place:
        if not 0 <= i < len(self.lengths):
            raise DatasetError(f"{self.root} has episodes 0..{len(self.lengths) - 1}, not {i}")
        return self._catalogue.place(i)

    def _view(self, view: str) -> View:
        if view not in self._views:
            raise DatasetError(f"{self.root} has no view {view!r}; it has {sorted(self.views)}")
        return self._views[view]

    def _names(self, keys: Sequence[str]) -> list[str]:
        """Of joined vectors; with the feature's name before them where two would be the same."""
        names = [name for key in keys for name in self._info.names(key)]
        if len(keys) > 1 and len(set(names)) < len(names):
            return [f"{key}.{name}" for key in keys for name in self._info.names(key)]
        return names

    def _rows(self, i: int, place: Place) -> dict[str, Any]:
        rows = self._tables.rows(place.data, place.first_row, place.length)
        expected = np.arange(place.first_index, place.first_index + place.length)
        if (
            place.first_row < 0
            or not np.array_equal(rows.get("index", ()), expected)
            or (rows["episode_index"] != i).any()
        ):
            raise DatasetError(
                f"{place.data} does not hold the {place.length} rows of episode {i} from index "
                f"{place.first_index}; the file or the episode table is damaged"
            )
        self._check_clock(i, place, rows)
        return rows

    def _check_clock(self, i: int, place: Place, rows: dict[str, Any]) -> None:
        clock = np.ravel(np.asarray(rows.get("timestamp", ())))
        if len(clock) < 2 or clock.dtype.kind not in "fiu":
            return
        seconds = float(clock[-1]) - float(clock[0])
        expected = (place.length - 1) / self.fps
        if not abs(seconds - expected) <= _CLOCK_TOLERANCE * expected:
            raise DatasetError(
                f"{place.data}: timestamp says that the {place.length} rows of episode {i} last"
                f" {seconds:.4f} s, but at fps {self.fps:g} of {self._info.path} they last"
                f" {expected:.4f} s"
            )

    def _image(self, place: Place, camera: View, frame: int) -> np.ndarray:
        where = f"{place.data}: {camera.key} of row {place.first_row + frame}"
        cell = self._tables.cell(place.data, camera.key, place.first_row + frame)
        if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):
            raise DatasetError(f"{where} holds no picture")
        picture = decode_image(cell.get("bytes") or self._file(where, cell["path"]), where)
        self._check_size(where, camera, picture.shape[:2])
        return picture

    def _file(self, where: str, name: str) -> bytes:
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise DatasetError(f"{where} names {name}, which is not in the dataset")
        try:
            return path.read_bytes()
        except OSError as error:
            raise DatasetError(f"{where} names {path}, which cannot be read ({error})") from error

    def _check_size(self, where: str, camera: View, size: tuple[int, ...]) -> None:
        if size != camera.size:
            raise DatasetError(f"{where} has frames {size}, meta/info.json says {camera.size}")


def _keys(name: str, value: str | Sequence[str]) -> tuple[str, ...]:
    keys = (value,) if isinstance(value, str) else tuple(value)
    if not keys or len(set(keys)) != len(keys):
        raise InputError(f"{name} is {value!r}, expected the names of different features")
    return keys
