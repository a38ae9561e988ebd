"""What ``features.json`` and ``dataset_info.json`` say of an RLDS dataset."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlakern.errors import DatasetError

__all__ = ["Feature", "Features", "Shard", "find_shards"]


@dataclass(frozen=True)
class Feature:
    """One leaf. Records hold it under ``key``, for all steps of the episode one after another.

    Attributes:
        shape: of one step; None where it differs.
        dtype: numpy's name of its numbers.
        encoding: of a tensor: ``none`` (numbers), ``bytes`` or ``zlib`` (a string a step).
    """

    key: str
    kind: Literal["tensor", "image", "text"]
    shape: tuple[int | None, ...] = ()
    dtype: str = "float32"
    encoding: str = "none"

    @property
    def width(self) -> int:
        """Numbers a step; 0 where it differs from step to step."""
        return math.prod(size or 0 for size in self.shape)

    @property
    def numeric(self) -> bool:
        """Whether it can be part of a state or an action."""
        return self.kind == "tensor" and self.width > 0 and len(self.shape) <= 1


@dataclass(frozen=True)
class Shard:
    """One file, and the records it should hold, None where nobody says."""

    path: Path
    records: int | None


class Features:
    """The features of an episode.

    Attributes:
        steps: name under ``steps`` -> feature, such as ``observation/image``.
        others: texts of the whole episode, such as ``episode_metadata/file_path``.
    """

    def __init__(self, root: Path) -> None:
        """Raises: DatasetError: no ``features.json``, or one without steps."""
        self.path = root / "features.json"
        tree = _read_object(self.path)
        top = _children(tree)
        steps = top.get("steps", {}).get("sequence", {}).get("feature")
        if not steps:
            raise DatasetError(f"{self.path} has no feature 'steps'; is this an RLDS dataset?")
        self.steps = {f.key.removeprefix("steps/"): f for f in self._leaves(steps, "steps")}
        del top["steps"]
        rest = (leaf for name, node in top.items() for leaf in self._leaves(node, name))
        self.others = {leaf.key: leaf for leaf in rest if leaf.kind == "text"}

    def numeric(self, name: str) -> Feature:
        """A feature of the steps that has a fixed number of numbers a step."""
        feature = self.steps.get(name)
        if feature is None or not feature.numeric:
            known = sorted(name for name, f in self.steps.items() if f.numeric)
            raise DatasetError(f"{self.path}: steps has no vector {name!r}; it has {known}")
        return feature

    def counter(self) -> Feature:
        """The feature that tells the number of steps with the fewest bytes to look at."""
        known = [f for f in self.steps.values() if f.numeric and f.encoding == "none"]
        if not known:
            raise DatasetError(f"{self.path}: steps has no numbers that tell how many there are")
        return min(known, key=lambda feature: (feature.width, feature.key))

    def _leaves(self, node: dict[str, Any], key: str) -> Iterator[Feature]:
        for name, child in _children(node).items():
            yield from self._leaves(child, f"{key}/{name}")
        # Sequences inside a step, videos and sounds are left out.
        tensor, image = node.get("tensor"), node.get("image")
        if "text" in node or (tensor and tensor.get("dtype") == "string"):
            if not tensor or not _shape(tensor):
                yield Feature(key, "text")
        elif tensor and _is_dtype(tensor.get("dtype")):
            encoding = tensor.get("encoding") or "none"
            yield Feature(key, "tensor", _shape(tensor), tensor["dtype"], encoding)
        elif "classLabel" in node:
            yield Feature(key, "tensor", (), "int64")
        elif image and image.get("dtype", "uint8") == "uint8" and _shape(image)[-1:] == (3,):
            yield Feature(key, "image", _shape(image), "uint8")


def find_shards(root: Path, split: str, partial: bool) -> tuple[str, list[Shard]]:
    """The dataset's name and the files of a split, in order.

    Raises:
        DatasetError: no such split, or a shard that is missing while not ``partial``.
    """
    pattern = re.compile(r"(?:(.+)-)?([^-]+)\.tfrecord(?:-(\d+)-of-(\d+))?")
    found = [(pattern.fullmatch(path.name), path) for path in sorted(root.glob("*.tfrecord*"))]
    known = [(match, path) for match, path in found if match]
    names, counts = _splits(root)
    chosen = sorted(
        (int(match[3] or 0), int(match[4] or 1), path, match[1] or names)
        for match, path in known
        if match[2] == split
    )
    if not chosen:
        others = sorted({match[2] for match, _ in known})
        raise DatasetError(f"{root} has no *-{split}.tfrecord files; it has the splits {others}")
    total = chosen[0][1]
    lost = sorted(set(range(total)) - {number for number, _, _, _ in chosen})
    if lost and not partial:
        raise DatasetError(
            f"{root} lacks shard {lost[0]} of {total} of split {split} ({len(lost)} are missing);"
            " load it, or open what is there with partial"
        )
    expected = counts.get(split, [])
    shards = [
        Shard(path, expected[number] if len(expected) == total else None)
        for number, _, path, _ in chosen
    ]
    return names or chosen[0][3], shards


def _splits(root: Path) -> tuple[str, dict[str, list[int | None]]]:
    """The name and the records per shard of each split, as ``dataset_info.json`` has them."""
    path = root / "dataset_info.json"
    if not path.is_file():
        return "", {}
    info = _read_object(path)
    counts: dict[str, list[int | None]] = {}
    for split in info.get("splits") or []:
        if isinstance(split, dict):
            lengths = split.get("shardLengths") or []
            counts[str(split.get("name"))] = [int(n) if str(n).isdigit() else None for n in lengths]
    return str(info.get("name") or ""), counts


def _children(node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    children = (node.get("featuresDict") or {}).get("features") or {}
    return {name: child for name, child in children.items() if isinstance(child, dict)}


def _shape(node: dict[str, Any]) -> tuple[int | None, ...]:
    sizes = [int(size) for size in (node.get("shape") or {}).get("dimensions") or []]
    return tuple(size if size >= 0 else None for size in sizes)


def _is_dtype(name: Any) -> bool:
    return (
        isinstance(name, str)
        and bool(re.fullmatch(r"bool|u?int\d+|float\d+", name))
        and (np.dtype(name).kind in "biuf")
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{path} holds a {type(value).__name__}, expected an object")
    return value
