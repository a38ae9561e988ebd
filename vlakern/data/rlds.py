"""RLDS datasets (Open X-Embodiment) as TensorFlow Datasets stores them, read without TensorFlow."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlakern.data import rlds_example
from vlakern.data.episode import Episode
from vlakern.data.image import decode_image
from vlakern.data.pool import Recent
from vlakern.data.rlds_features import Feature, Features, find_shards
from vlakern.data.rlds_index import Record, build_index
from vlakern.data.rlds_records import read_record
from vlakern.errors import DatasetError, InputError

__all__ = ["CACHE_BYTES", "RldsDataset"]

_STATES = ("observation/state", "observation/proprio", "state")
_ACTIONS = ("action",)
_INSTRUCTIONS = (
    "language_instruction",
    "observation/natural_language_instruction",
    "natural_language_instruction",
    "instruction",
)
# Of vectors and of places of pictures; pictures themselves are not kept.
CACHE_BYTES = 128 << 20


@dataclass(frozen=True)
class _Content:
    """One episode as read from its record: everything but the pictures, and where these are."""

    states: np.ndarray
    actions: np.ndarray
    texts: dict[str, str]
    pictures: dict[str, np.ndarray]

    def size(self) -> int:
        vectors = (self.states, self.actions, *self.pictures.values())
        return sum(part.nbytes for part in vectors) + sum(map(len, self.texts.values()))


class RldsDataset:
    """One split of the directory that holds ``features.json`` and the record files.

    A record is an episode. Its checksum is verified when a process first touches it; after that
    single pictures are read from their places. May be pickled, and used by several threads.

    The steps are given as they are recorded: whether the action of the last step means anything is
    the recorder's affair.

    Attributes:
        root: the directory, such as ``bridge_dataset/1.0.0``.
        fps: steps per second [Hz], as given: the records do not say.
        robot_type: the argument, or the dataset's name.
        views: view -> (height, width) [pixels]: pictures in colour, less ``observation/``.
        state_names, action_names: a feature's name and a number each.
        lengths: steps of each episode.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        fps: float | None = None,
        state: str | Sequence[str] | None = None,
        action: str | Sequence[str] | None = None,
        instruction: str | Sequence[str] = _INSTRUCTIONS,
        split: str = "train",
        partial: bool = False,
        robot_type: str | None = None,
    ) -> None:
        """Opens ``root``; the first time, its files are looked through for their records.

        Args:
            state: features under ``steps`` that are joined to the state, such as
                ``observation/state``, which is taken if none is named.
            action: the same of the action; ``action`` if none is named.
            instruction: the first of these that is not empty is the task.
            partial: whether shards may be missing.

        Raises:
            DatasetError: something missing, damaged or contradicting; names file and field.
            InputError: a rate that is not positive.
        """
        self.root = Path(root)
        if fps is None:
            raise DatasetError(f"{self.root}: RLDS records do not say their rate; give fps")
        if not fps > 0:
            raise InputError(f"fps is {fps!r}, expected a positive number")
        self.fps = float(fps)
        self._features = Features(self.root)
        self._state = self._chosen("state", state, _STATES)
        self._action = self._chosen("action", action, _ACTIONS)
        self._instruction = (instruction,) if isinstance(instruction, str) else tuple(instruction)
        name, shards = find_shards(self.root, split, partial)
        self.robot_type = robot_type or name or self.root.name
        self._records = build_index(self.root, shards, self._features.counter())
        if not self._records:
            raise DatasetError(f"{self.root}: split {split} holds no episode")
        self.lengths: list[int] = [record.steps for record in self._records]
        self._pictures = {
            key.removeprefix("observation/"): feature
            for key, feature in self._features.steps.items()
            if feature.kind == "image"
        }
        self._recent: Recent[int, _Content] = Recent(CACHE_BYTES, _Content.size)
        self.views = {view: self._size(view) for view in self._pictures}

    @property
    def state_names(self) -> list[str]:
        """The feature's name and a number."""
        return _numbered(self._state)

    @property
    def action_names(self) -> list[str]:
        """The feature's name and a number."""
        return _numbered(self._action)

    @property
    def num_episodes(self) -> int:
        """Records of the split."""
        return len(self._records)

    @property
    def num_frames(self) -> int:
        """Steps over all episodes."""
        return sum(self.lengths)

    def episode(self, i: int) -> Episode:
        """Episode ``i`` (0 <= i < num_episodes) without its pictures.

        ``instructions`` has every text of the first step and of the episode that is not empty, by
        its feature's name; ``task`` is empty where the episode has no instruction.

        Raises:
            DatasetError: a wrong checksum, a missing feature, numbers that are not finite.
        """
        content = self._content(i)
        texts = {key: text for key, text in content.texts.items() if text}
        task = next((texts[key] for key in self._instruction if key in texts), "")
        return Episode(i, task, content.states.copy(), content.actions.copy(), texts)

    def frames(self, i: int, view: str) -> np.ndarray:
        """Every picture of ``view`` in episode ``i``: uint8 ``[T, H, W, 3]`` RGB.

        Raises:
            DatasetError: a view that is not there, or a picture that cannot be decoded.
        """
        self._record(i)
        return np.stack([self.picture(i, view, k) for k in range(self.lengths[i])])

    def picture(self, i: int, view: str, frame: int) -> np.ndarray:
        """Picture ``frame`` of ``view`` in episode ``i``: uint8 ``[H, W, 3]`` RGB.

        Raises as :meth:`frames`, and for a frame that the episode does not have.
        """
        record = self._record(i)
        if view not in self._pictures:
            raise DatasetError(f"{self.root} has no view {view!r}; it has {sorted(self.views)}")
        if not 0 <= frame < record.steps:
            raise DatasetError(
                f"{self.root}: episode {i} has frames 0..{record.steps - 1}, not {frame}"
            )
        picture = self._decode(i, view, frame)
        if picture.shape[:2] != self.views[view]:
            raise DatasetError(
                f"{_where(record)}: {self._pictures[view].key} of step {frame} has frames"
                f" {picture.shape[:2]}, expected {self.views[view]}"
            )
        return picture

    def _decode(self, i: int, view: str, frame: int) -> np.ndarray:
        record = self._records[i]
        first, last = self._content(i).pictures[view][frame].tolist()
        try:
            with record.path.open("rb") as file:
                file.seek(record.offset + first)
                content = file.read(last - first)
        except OSError as error:
            raise DatasetError(f"{record.path} cannot be read ({error.strerror})") from error
        return decode_image(
            content, f"{_where(record)}: {self._pictures[view].key} of step {frame}"
        )

    def _size(self, view: str) -> tuple[int, int]:
        """As declared, or as the first picture has it where sizes are left open."""
        height, width, _ = self._pictures[view].shape
        if height is None or width is None:
            height, width = self._decode(0, view, 0).shape[:2]
        return height, width

    def _chosen(
        self, what: str, names: str | Sequence[str] | None, usual: Sequence[str]
    ) -> list[Feature]:
        steps = self._features.steps
        if names is None:
            names = [next((name for name in usual if name in steps), usual[0])]
        names = [names] if isinstance(names, str) else list(names)
        if not names:
            raise InputError(f"{what} is {names!r}, expected the names of features")
        try:
            return [self._features.numeric(name) for name in names]
        except DatasetError as error:
            raise DatasetError(f"{error}; name the {what}") from error

    def _record(self, i: int) -> Record:
        if not 0 <= i < len(self._records):
            raise DatasetError(f"{self.root} has episodes 0..{len(self._records) - 1}, not {i}")
        return self._records[i]

    def _content(self, i: int) -> _Content:
        record = self._record(i)
        return self._recent.get(i, lambda: self._parse(record))

    def _parse(self, record: Record) -> _Content:
        data = read_record(record.path, record.number, record.offset, record.length)
        with memoryview(data) as view:
            reader = _Reader(record, view)
            states, actions = (
                np.concatenate([reader.numbers(feature) for feature in features], axis=1)
                for features in (self._state, self._action)
            )
            texts = {
                **{k: reader.text(f) for k, f in self._features.steps.items() if f.kind == "text"},
                **{key: reader.text(f, 1) for key, f in self._features.others.items()},
            }
            pictures = {
                name: np.array(reader.items(feature), dtype=np.int64)
                for name, feature in self._pictures.items()
            }
        return _Content(states, actions, texts, pictures)


class _Reader:
    """The features of one record, each checked against its declaration."""

    def __init__(self, record: Record, data: memoryview) -> None:
        self._record, self._data = record, data
        self._spans = self._guarded("", lambda: rlds_example.features(data))

    def numbers(self, feature: Feature) -> np.ndarray:
        """float32 ``[T, width]``."""
        if feature.encoding == "none":
            read = rlds_example.floats if "float" in feature.dtype else rlds_example.integers
            flat = self._guarded(feature.key, lambda: read(self._data, self._span(feature)))
        else:
            flat = np.concatenate([self._raw(feature, item) for item in self.items(feature)])
        self._check(feature, len(flat), feature.width)
        values = flat.astype(np.float32).reshape(self._record.steps, feature.width)
        if not np.isfinite(values).all():
            raise DatasetError(f"{_where(self._record)}: {feature.key} has a value not finite")
        return values

    def items(self, feature: Feature, count: int = 0) -> list[tuple[int, int]]:
        """Where each step's string lies in the record's data."""
        found = self._guarded(
            feature.key, lambda: rlds_example.items(self._data, self._span(feature))
        )
        self._check(feature, len(found), 1, count)
        return found

    def text(self, feature: Feature, count: int = 0) -> str:
        """Of the first step."""
        first, last = self.items(feature, count)[0]
        try:
            return bytes(self._data[first:last]).decode()
        except UnicodeDecodeError as error:
            raise DatasetError(f"{_where(self._record)}: {feature.key} is no UTF-8") from error

    def _raw(self, feature: Feature, item: tuple[int, int]) -> np.ndarray:
        content: bytes | memoryview = self._data[slice(*item)]
        size = feature.width * np.dtype(feature.dtype).itemsize
        if feature.encoding == "zlib":
            try:
                content = zlib.decompressobj().decompress(content, size + 1)
            except zlib.error as error:
                raise DatasetError(f"{_where(self._record)}: {feature.key}: {error}") from error
        if len(content) != size:
            raise DatasetError(
                f"{_where(self._record)}: {feature.key} has {len(content)} bytes a step, expected"
                f" {size}"
            )
        return np.frombuffer(content, np.dtype(feature.dtype).newbyteorder("<"))

    def _span(self, feature: Feature) -> tuple[int, int]:
        if feature.key not in self._spans:
            raise DatasetError(f"{_where(self._record)} lacks the feature {feature.key!r}")
        return self._spans[feature.key]

    def _check(self, feature: Feature, found: int, width: int, count: int = 0) -> None:
        expected = (count or self._record.steps) * width
        if found != expected:
            raise DatasetError(
                f"{_where(self._record)}: {feature.key} has {found} values, expected {expected}"
                f" for {self._record.steps} steps"
            )

    def _guarded(self, key: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except rlds_example.Malformed as error:
            what = f"{key}: " if key else "no tf.train.Example: "
            raise DatasetError(f"{_where(self._record)}: {what}{error}") from error


def _where(record: Record) -> str:
    return f"{record.path}: record {record.number}"


def _numbered(features: Sequence[Feature]) -> list[str]:
    return [f"{f.key.removeprefix('steps/')}.{k}" for f in features for k in range(f.width)]
