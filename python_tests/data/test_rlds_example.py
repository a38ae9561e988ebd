"""tf.train.Example messages: a sample spelled out byte by byte, any packing, and damage."""

import struct
from typing import Any

import numpy as np
import pytest

from vlakern.data.rlds_example import Malformed, count, features, floats, integers, items

SAMPLE = bytes.fromhex(
    "0a 33"  # field 1 (Features), 51 bytes
    " 0a 11"  # field 1 (entry of the map), 17 bytes
    "  0a 01 66"  # field 1 (name), 1 byte: "f"
    "  12 0c"  # field 2 (Feature), 12 bytes
    "   12 0a"  # field 2 (FloatList), 10 bytes
    "    0a 08 00 00 c0 3f 00 00 00 c0"  # field 1, 8 bytes packed: 1.5, -2.0
    " 0a 0f"  # the second entry, 15 bytes
    "  0a 01 62"  # "b"
    "  12 0a"  # Feature of 10 bytes
    "   0a 08"  # field 1 (BytesList), 8 bytes
    "    0a 02 68 69"  # field 1: "hi"
    "    0a 00"  # field 1: ""
    "    0a 00"  # field 1: ""
    " 0a 0d"  # the third entry, 13 bytes
    "  0a 01 69"  # "i"
    "  12 08"  # Feature of 8 bytes
    "   1a 06"  # field 3 (Int64List), 6 bytes
    "    0a 04 01 ac 02 00"  # field 1, 4 bytes packed: 1, 300 (0x2c + 2 * 128), 0
)


def test_sample():
    """Every value of the sample, at the places counted by hand."""
    data = memoryview(SAMPLE)
    found = features(data)
    assert found == {"f": (9, 21), "b": (28, 38), "i": (45, 53)}
    np.testing.assert_array_equal(floats(data, found["f"]), [1.5, -2.0])
    assert [bytes(data[slice(*item)]) for item in items(data, found["b"])] == [b"hi", b"", b""]
    assert items(data, found["b"])[0] == (32, 34)
    np.testing.assert_array_equal(integers(data, found["i"]), [1, 300, 0])
    assert [count(data, found[key]) for key in "fbi"] == [2, 3, 3]


def test_another_writer_makes_the_sample(rlds_writer: Any):
    """The tests' own encoder gives the same bytes."""
    made = rlds_writer.example({"f": [1.5, -2.0], "b": [b"hi", b"", b""], "i": [1, 300, 0]})
    assert made == SAMPLE


def test_integers_of_any_size(rlds_writer: Any):
    """Negative and large numbers come back."""
    values = [0, 1, 127, 128, -1, -300, (1 << 63) - 1, -(1 << 63)]
    data = memoryview(rlds_writer.example({"i": values}))
    span = features(data)["i"]
    np.testing.assert_array_equal(integers(data, span), values)
    assert count(data, span) == len(values)


def test_unpacked_and_in_parts(rlds_writer: Any):
    """Numbers one by one, lists in parts, unknown fields and the last of several kinds."""
    block, varint = rlds_writer.block, rlds_writer.varint
    single = b"\x0d" + struct.pack("<f", 2.5)
    floats_twice = block(2, single + single) + block(2, block(1, struct.pack("<f", 3.5)))
    unknown = varint(9 << 3 | 0) + varint(7) + varint(10 << 3 | 1) + bytes(8)
    whole = block(3, b"\x08" + varint(300) + b"\x08\x05") + unknown
    changed = block(2, single) + block(1, block(1, b"x"))
    entries = {"a": floats_twice, "b": whole, "c": changed, "d": b""}
    content = b"".join(block(1, block(1, k.encode()) + block(2, v)) for k, v in entries.items())
    data = memoryview(unknown + block(1, content + unknown))
    found = features(data)
    np.testing.assert_array_equal(floats(data, found["a"]), [2.5, 2.5, 3.5])
    np.testing.assert_array_equal(integers(data, found["b"]), [300, 5])
    assert len(items(data, found["c"])) == 1
    assert [count(data, found[key]) for key in "abcd"] == [3, 2, 1, 0]
    assert (len(floats(data, found["d"])), len(integers(data, found["d"]))) == (0, 0)


def test_other_kind():
    """A list of another kind than expected says so."""
    data = memoryview(SAMPLE)
    found = features(data)
    for read, key, message in (
        (floats, "b", "it holds bytes, expected floats"),
        (integers, "f", "it holds floats, expected integers"),
        (items, "i", "it holds integers, expected bytes"),
    ):
        with pytest.raises(Malformed, match=message):
            read(data, found[key])


def test_truncation_and_noise(fuzz: range):
    """Whatever the bytes, they are read or refused; nothing else happens."""
    random = np.random.default_rng(0)
    for seed in fuzz:
        flipped = bytearray(SAMPLE)
        for place in random.integers(8 * len(SAMPLE), size=1 + seed % 4):
            flipped[place // 8] ^= 1 << int(place % 8)
        read_all(bytes(flipped[: len(SAMPLE) - seed % 7]))
        read_all(random.integers(256, size=seed % 60, dtype=np.uint8).tobytes())
    with pytest.raises(Malformed, match="a field ends after its message"):
        features(memoryview(SAMPLE[:-1]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0a", "a number is cut off"),
        ("0a ff ff ff ff ff ff ff ff ff ff 01", "a number is longer than 64 bits"),
        ("0b", "a field has wire type 3"),
        ("02 00", "a field ends after its message"),
        ("0a 05 0a 03 0a 01 ff", "which is no text"),
    ],
)
def test_malformed(content: str, message: str):
    """Each way to be no message has its sentence."""
    with pytest.raises(Malformed, match=message):
        features(memoryview(bytes.fromhex(content)))


def read_all(content: bytes) -> None:
    data = memoryview(content)
    try:
        for span in features(data).values():
            count(data, span)
            for read in (floats, integers, items):
                try:
                    read(data, span)
                except Malformed:
                    continue
    except Malformed:
        return
