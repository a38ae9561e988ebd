"""Record files: the checksum is RFC 3720's, the framing TensorFlow's, and damage is found."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlakern.data.rlds_records import crc32c, framed, masked_crc, read_record, record_offsets
from vlakern.errors import DatasetError

# Two records, "ab" and "", as TensorFlow writes them.
SAMPLE = bytes.fromhex(
    "0200000000000000"  # 2 bytes of data, as 64 bits with the low byte first
    "78270b34"  # masked CRC-32C of these 8 bytes
    "6162"  # the data, "ab"
    "1cb0f0f4"  # masked CRC-32C of the data
    "0000000000000000"  # no data
    "29039807"  # of 8 zeros
    "d8ea82a2"  # of nothing: the constant itself, 0xa282ead8, because its CRC is 0
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0x00000000),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
    ],
)
def test_known_checksums(data: bytes, expected: int):
    """The examples of RFC 3720, section B.4, and the catalogue's check value."""
    assert crc32c(data) == expected


@pytest.mark.parametrize(
    "size", [1, 63, 64, 65, 127, 128, 129, 64 * 7 + 5, 64 * 16384, 64 * 16385 + 64 * 2 + 9]
)
def test_any_length(size: int, seed: int, rlds_writer: Any):
    """Lanes, odd lanes, blocks of lanes and what is left over give the checksum bit by bit."""
    data = np.random.default_rng(seed).integers(256, size=size, dtype=np.uint8).tobytes()
    if size < 10_000:
        assert masked_crc(data) == rlds_writer.crc(data)
    # A checksum goes on where another one ended: that of the parts gives that of the whole.
    state = crc32c(data) ^ 0xFFFFFFFF
    for byte in b"the end":
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    assert crc32c(data + b"the end") == state ^ 0xFFFFFFFF


def test_sample(tmp_path: Path, rlds_writer: Any):
    """The bytes above are read and written, and another writer makes the same."""
    assert framed(b"ab") + framed(b"") == SAMPLE
    assert rlds_writer.record(b"ab") + rlds_writer.record(b"") == SAMPLE
    path = tmp_path / "a.tfrecord"
    path.write_bytes(SAMPLE)
    assert list(record_offsets(path)) == [(12, 2), (30, 0)]
    assert [read_record(path, 0, 12, 2), read_record(path, 1, 30, 0)] == [b"ab", b""]


def test_every_bit(tmp_path: Path):
    """No single flipped bit of a file passes."""
    path = tmp_path / "a.tfrecord"
    for bit in range(8 * len(SAMPLE)):
        flipped = bytearray(SAMPLE)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(DatasetError, match=r"a\.tfrecord.*record [01]"):
            read_all(path)


def test_truncation(tmp_path: Path):
    """A file cut off anywhere but between records is refused."""
    path = tmp_path / "a.tfrecord"
    for keep in range(1, len(SAMPLE)):
        path.write_bytes(SAMPLE[:keep])
        if keep == 18:
            assert read_all(path) == [b"ab"]
            continue
        with pytest.raises(DatasetError, match=r"record [01] is cut off; the file is truncated"):
            read_all(path)


def test_absurd_length(tmp_path: Path):
    """A length with a right checksum that reaches past the file is refused before reading."""
    length = struct.pack("<Q", 1 << 60)
    path = tmp_path / "a.tfrecord"
    path.write_bytes(length + struct.pack("<I", masked_crc(length)))
    with pytest.raises(DatasetError, match="record 0 is cut off"):
        read_all(path)


def test_missing_and_moved(tmp_path: Path):
    """A file that is gone, or a record that is elsewhere by now, is an error."""
    with pytest.raises(DatasetError, match=r"gone\.tfrecord cannot be read"):
        read_all(tmp_path / "gone.tfrecord")
    path = tmp_path / "a.tfrecord"
    path.write_bytes(SAMPLE)
    with pytest.raises(DatasetError, match="record 0 is not where the index has it"):
        read_record(path, 0, 12, 3)


def read_all(path: Path) -> list[bytes]:
    return [read_record(path, k, *place) for k, place in enumerate(record_offsets(path))]
