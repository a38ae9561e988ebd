"""Where every record of a split lies and how many steps it has: looked up once, kept in a file."""

import hashlib
import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlakern import env
from vlakern.data import rlds_example
from vlakern.data.rlds_features import Feature, Shard
from vlakern.data.rlds_records import read_record, record_offsets
from vlakern.errors import DatasetError
from vlakern.files import write_bytes

__all__ = ["INDEX_NAME", "Record", "build_index"]

INDEX_NAME = ".vlakern-records.json"
_SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """One episode: record ``number`` of its file, its data's place there, and its steps."""

    path: Path
    number: int
    offset: int
    length: int
    steps: int


def build_index(root: Path, shards: Sequence[Shard], counter: Feature) -> list[Record]:
    """The records of ``shards``, in order.

    Of a file that is not known, or has another size or time than when it was looked at, the headers
    and the sizes of the features are read, but not the pictures. The result is kept beside the
    dataset, or in the cache directory where that cannot be written.

    Raises:
        DatasetError: a damaged or truncated file, an episode without steps, or another number of
            records than the dataset declares; names file and record.
    """
    places = [root / INDEX_NAME, _cache_path(root)]
    known = next((found for found in map(_load, places) if found), {})
    what = [counter.key, counter.width]
    files = known.get("files", {}) if known.get("counter") == what else {}
    changed, records = False, []
    for shard in shards:
        facts = _facts(shard.path)
        entry: Any = files.get(shard.path.name)
        if not _fits(entry, facts):
            entry = {**facts, "records": _look(shard.path, counter)}
            files, changed = {**files, shard.path.name: entry}, True
        rows = entry["records"]
        if shard.records is not None and len(rows) != shard.records:
            raise DatasetError(
                f"{shard.path} has {len(rows)} records, {root}/dataset_info.json says"
                f" {shard.records} in shardLengths"
            )
        records += [Record(shard.path, k, *row) for k, row in enumerate(rows)]
    if changed:
        content = {"schema": _SCHEMA, "counter": what, "files": files}
        _save(places, json.dumps(content, separators=(",", ":")).encode())
    return records


def _look(path: Path, counter: Feature) -> list[list[int]]:
    """Offset, bytes and steps of each record of a file."""
    places = list(record_offsets(path))
    if not places:
        return []
    rows: list[list[int]] = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for number, (offset, length) in enumerate(places):
            with memoryview(mapped) as whole, whole[offset : offset + length] as data:
                steps = _steps(path, number, offset, data, counter)
            if steps < 1:
                raise DatasetError(f"{path}: record {number} has no steps in {counter.key}")
            rows.append([offset, length, steps])
    return rows


def _steps(path: Path, number: int, offset: int, data: memoryview, counter: Feature) -> int:
    where = f"{path}: record {number}"
    try:
        span = rlds_example.features(data).get(counter.key)
        values = rlds_example.count(data, span) if span else None
    except rlds_example.Malformed as error:
        # Damage has a sentence of its own.
        read_record(path, number, offset, len(data))
        raise DatasetError(f"{where} is no tf.train.Example ({error})") from error
    if values is None:
        raise DatasetError(f"{where} lacks the feature {counter.key!r}")
    if values % counter.width:
        raise DatasetError(
            f"{where}: {counter.key} has {values} numbers, not {counter.width} for each step"
        )
    return values // counter.width


def _facts(path: Path) -> dict[str, int]:
    try:
        facts = path.stat()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror})") from error
    return {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns}


def _fits(entry: Any, facts: dict[str, int]) -> bool:
    """Whether an entry is of the file as it is, and whole."""
    if not isinstance(entry, dict) or any(entry.get(key) != facts[key] for key in facts):
        return False
    rows = entry.get("records")
    return isinstance(rows, list) and all(
        isinstance(row, list)
        and len(row) == 3
        and all(type(number) is int and number >= 0 for number in row)
        and row[0] + row[1] <= facts["size"]
        for row in rows
    )


def _load(path: Path) -> dict[str, Any]:
    """What was kept; {} where nothing is, or nothing that can be used."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    usable = isinstance(value, dict) and value.get("schema") == _SCHEMA
    return value if usable and isinstance(value.get("files"), dict) else {}


def _save(places: Sequence[Path], content: bytes) -> None:
    """To the first place that can be written; looking again next time is no harm."""
    for place in places:
        try:
            write_bytes(place, content)
        except OSError:
            continue
        return


def _cache_path(root: Path) -> Path:
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:32]
    return env.cache_directory() / "records" / f"{name}.json"
