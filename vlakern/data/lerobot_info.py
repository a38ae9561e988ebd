"""What ``meta/info.json`` of a LeRobot dataset declares, and the other small files beside it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlakern.errors import DatasetError

__all__ = ["IMAGE_PREFIX", "Info", "Place", "View", "read_json", "read_lines", "read_stats"]

IMAGE_PREFIX = "observation.images."

_FIELDS = ("codebase_version", "fps", "features", "total_episodes", "total_frames", "data_path")
_NUMBERS = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True)
class View:
    """One camera: its feature, the pictures' (height, width) [pixels], and how they are kept."""

    key: str
    size: tuple[int, int]
    video: bool


@dataclass(frozen=True)
class Place:
    """Where one episode lies.

    Attributes:
        length: instants.
        data: parquet file of its rows, which begin at row ``first_row`` with index ``first_index``.
        videos: feature -> file and number of the episode's first frame in it.
        tasks: instructions that the episode table names.
    """

    length: int
    data: Path
    first_row: int
    first_index: int
    videos: Mapping[str, tuple[Path, int]]
    tasks: tuple[str, ...] = ()


class Info:
    """The declarations of a dataset, checked.

    Attributes:
        views: view -> :class:`View`; pictures of depth are none.
        texts: features that hold text, such as instructions.
    """

    def __init__(self, root: Path) -> None:
        """Raises: DatasetError: a field that is missing or makes no sense."""
        self.root, self.path = root, root / "meta/info.json"
        self.fields = read_json(self.path)
        missing = [key for key in _FIELDS if key not in self.fields]
        if missing:
            raise DatasetError(f"{self.path} lacks the field {missing[0]!r}")
        self.version = str(self.fields["codebase_version"])
        self.fps = self._rate()
        for key in ("total_episodes", "total_frames"):
            if not isinstance(self.fields[key], int) or self.fields[key] < 0:
                raise DatasetError(f"{self.path}: {key} is {self.fields[key]!r}, expected a count")
        self.features = self._features()
        self.views = dict(self._views())
        self.texts = [key for key, f in self.features.items() if f.get("dtype") == "string"]
        if any(view.video for view in self.views.values()) and not self.fields.get("video_path"):
            raise DatasetError(f"{self.path} lacks the field 'video_path'")

    def width(self, key: str) -> int:
        """Numbers in the vector ``key``."""
        feature = self.features.get(key)
        shape = feature.get("shape") if feature else None
        if not feature or feature.get("dtype") not in _NUMBERS or not _is_vector(shape):
            vectors = [
                name
                for name, f in self.features.items()
                if f.get("dtype") in _NUMBERS and _is_vector(f.get("shape"))
            ]
            raise DatasetError(f"{self.path}: features lacks the vector {key!r}; it has {vectors}")
        return int(shape[0]) if shape else 1

    def names(self, key: str) -> list[str]:
        """Of the numbers of a vector, numbered where the dataset gives none."""
        names, width = self.features[key].get("names"), self.width(key)
        if isinstance(names, dict):
            # Older datasets group them, {"motors": [...]}, or number them, {"x": 0}.
            lists = [group for group in names.values() if isinstance(group, list)]
            names = [name for group in lists for name in group] if lists else list(names)
        if isinstance(names, list) and len(names) == width:
            return [str(name) for name in names]
        return [f"{key}.{i}" for i in range(width)]

    def pattern(self, field: str, **numbers: Any) -> Path:
        """The file that the pattern ``field`` gives for ``numbers``."""
        pattern = self.fields[field]
        try:
            return self.root / str(pattern).format(**numbers)
        except (KeyError, IndexError, ValueError) as error:
            raise DatasetError(
                f"{self.path}: {field} is {pattern!r}, expected a pattern of {', '.join(numbers)}"
            ) from error

    def _rate(self) -> float:
        fps = self.fields["fps"]
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps < 1e6:
            raise DatasetError(f"{self.path}: fps is {fps!r}, expected a positive number")
        return float(fps)

    def _features(self) -> dict[str, dict[str, Any]]:
        features = self.fields["features"]
        if not isinstance(features, dict) or not all(
            isinstance(feature, dict) for feature in features.values()
        ):
            raise DatasetError(f"{self.path}: features is not an object of objects")
        return features

    def _views(self) -> Iterator[tuple[str, View]]:
        for key, feature in self.features.items():
            if feature.get("dtype") not in ("video", "image"):
                continue
            size = self._size(key, feature)
            if size:
                name = key.removeprefix(IMAGE_PREFIX).removeprefix("observation.")
                yield name, View(key, size, feature["dtype"] == "video")

    def _size(self, key: str, feature: Mapping[str, Any]) -> tuple[int, int] | None:
        """(height, width), or None of pictures that are not in colour."""
        shape, names = feature.get("shape"), feature.get("names")
        facts = {**(feature.get("info") or {}), **(feature.get("video_info") or {})}
        if facts.get("video.is_depth_map"):
            return None
        if not isinstance(shape, list) or len(shape) != 3:
            raise DatasetError(f"{self.path}: {key} has shape {shape}, expected three numbers")
        first = isinstance(names, list) and str(names[0]).startswith("channel")
        first = first or (shape[0] == 3 and shape[2] != 3)
        channels, height, width = shape if first else (shape[2], shape[0], shape[1])
        return (int(height), int(width)) if channels == 3 else None


def read_json(path: Path) -> dict[str, Any]:
    """One object.

    Raises:
        DatasetError: no file, no JSON, no object.
    """
    return _parse(_read_text(path), str(path))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; raises as :func:`read_json`."""
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if line.strip():
            yield _parse(line, f"{path}, line {number},")


def read_stats(value: Mapping[str, Any], where: str) -> dict[str, dict[str, np.ndarray]]:
    """feature -> statistic -> float64 array.

    Raises:
        DatasetError: something that is no array of numbers, by name.
    """
    stats: dict[str, dict[str, np.ndarray]] = {}
    for key, entry in value.items():
        try:
            stats[key] = {name: np.asarray(v, dtype=np.float64) for name, v in entry.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise DatasetError(f"{where}: statistics of {key!r} are no numbers") from error
    return stats


def _is_vector(shape: Sequence[Any] | None) -> bool:
    return isinstance(shape, list) and len(shape) <= 1 and all(isinstance(n, int) for n in shape)


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing; is this a LeRobot dataset?") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read ({error})") from error


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{where} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{where} holds a {type(value).__name__}, expected an object")
    return value
