"""The index of records: looked up once, renewed when a file changes, never trusted blindly."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from vlakern.data import rlds_index
from vlakern.data.rlds_features import Features, find_shards
from vlakern.data.rlds_index import INDEX_NAME, Record, build_index
from vlakern.errors import DatasetError

STEPS = ((3, 5), (), (2,))


@pytest.fixture
def root(tmp_path: Path, rlds_writer: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLAKERN_CACHE", str(tmp_path / "cache"))
    steps = {"action": rlds_writer.tensor([2], "float32")}
    shards = [[{"steps/action": [0.5] * 2 * n} for n in shard] for shard in STEPS]
    rlds_writer.write(tmp_path / "set", steps, shards)
    return tmp_path / "set"


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were looked through."""
    names: list[str] = []
    look = rlds_index._look
    monkeypatch.setattr(rlds_index, "_look", lambda p, c: names.append(p.name[-14:]) or look(p, c))
    return names


def index(root: Path) -> list[Record]:
    return build_index(root, find_shards(root, "train", False)[1], Features(root).counter())


def test_records(root: Path):
    """Every episode with its file, number, place and steps."""
    found = index(root)
    assert [(r.path.name[-14:], r.number, r.steps) for r in found] == [
        ("00000-of-00003", 0, 3),
        ("00000-of-00003", 1, 5),
        ("00002-of-00003", 0, 2),
    ]
    assert found[1].offset == 12 + found[0].length + 4 + 12


def test_kept(root: Path, looked: list[str]):
    """A second opening looks at nothing; a changed file alone is looked at again."""
    first = index(root)
    assert len(looked) == 3
    assert index(root) == first
    assert len(looked) == 3
    os.utime(root / "toy_arm-train.tfrecord-00002-of-00003", ns=(1, 1))
    assert index(root) == first
    assert looked[3:] == ["00002-of-00003"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"schema": 2, "files": {}}', b'{"schema": 1}', b"\xff\xfe"],
)
def test_useless_index(root: Path, looked: list[str], content: bytes):
    """An index that is damaged or of another version is made anew."""
    first = index(root)
    (root / INDEX_NAME).write_bytes(content)
    assert index(root) == first
    assert len(looked) == 6
    assert index(root) == first
    assert len(looked) == 6


@pytest.mark.parametrize("row", [[12], [12, 34, -5], [12, 1 << 40, 5], ["12", 34, 5], 7])
def test_impossible_rows(root: Path, looked: list[str], row: Any):
    """Rows that cannot be of the file are not used."""
    first = index(root)
    stored = json.loads((root / INDEX_NAME).read_text())
    stored["files"]["toy_arm-train.tfrecord-00000-of-00003"]["records"][0] = row
    (root / INDEX_NAME).write_text(json.dumps(stored))
    assert index(root) == first
    assert looked[3:] == ["00000-of-00003"]


def test_another_counter(root: Path, looked: list[str], rlds_writer: Any):
    """Steps that were counted by another feature are counted again."""
    index(root)
    text = (root / "features.json").read_text()
    (root / "features.json").write_text(text.replace('["2"]', '["1"]'))
    assert [record.steps for record in index(root)] == [6, 10, 4]


def test_read_only_place(root: Path, looked: list[str], monkeypatch: pytest.MonkeyPatch):
    """Where the dataset cannot be written, the cache directory keeps the index."""
    write = rlds_index.write_bytes

    def refuse(path: Path, content: bytes) -> None:
        if path.parent == root:
            raise PermissionError(13, "read-only")
        write(path, content)

    monkeypatch.setattr(rlds_index, "write_bytes", refuse)
    first = index(root)
    assert not (root / INDEX_NAME).exists()
    assert index(root) == first
    assert len(looked) == 3


def test_number_of_records(root: Path):
    """A file with another number of records than declared is refused."""
    text = (root / "dataset_info.json").read_text()
    (root / "dataset_info.json").write_text(text.replace('"2"', '"4"'))
    with pytest.raises(DatasetError, match=r"00000-of-00003 has 2 records, .*says 4 in shardLeng"):
        index(root)


def test_bad_records(root: Path, rlds_writer: Any):
    """An episode without steps, without the feature, or no example at all, is named."""
    path = root / "toy_arm-train.tfrecord-00002-of-00003"
    example, record = rlds_writer.example, rlds_writer.record
    for content, message in (
        (record(example({"steps/action": [0.5] * 3})), "has 3 numbers, not 2 for each step"),
        (record(b""), "lacks the feature 'steps/action'"),
        (record(b"\x0a\x7f"), "is no tf.train.Example"),
        (record(rlds_writer.block(1, b"")), "lacks the feature 'steps/action'"),
    ):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=rf"00002-of-00003: record 0.*{message}"):
            index(root)
    entry = rlds_writer.block(1, b"steps/action") + rlds_writer.block(2, b"")
    path.write_bytes(record(rlds_writer.block(1, rlds_writer.block(1, entry))))
    with pytest.raises(DatasetError, match="record 0 has no steps in steps/action"):
        index(root)
    flipped = bytearray(record(example({"steps/action": [0.5, 0.5]})))
    flipped[12] ^= 8
    path.write_bytes(flipped)
    with pytest.raises(DatasetError, match="the data of record 0 do not have their checksum"):
        index(root)
