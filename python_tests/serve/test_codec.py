"""Messages are openpi's, byte by byte; whatever else comes is refused in one sentence."""

import random
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest

from vlakern.errors import InputError
from vlakern.serve.codec import decode, encode

# Written down by hand from the protocol: a map of one float32 array of two zeros.
STATE = bytes.fromhex(
    "81 a5 7374617465 84"
    " c40b 5f5f6e6461727261795f5f c3"
    " c404 64617461 c408 0000000000000000"
    " c405 6474797065 a3 3c6634"
    " c405 7368617065 91 02"
)


def test_the_bytes_are_the_protocols() -> None:
    assert encode({"state": np.zeros(2, "<f4")}) == STATE
    found = decode(STATE)["state"]
    assert (found.dtype, found.shape, found.flags.writeable) == (np.float32, (2,), False)


@pytest.mark.parametrize("dtype", ["|u1", "<i4", "<f2", "<f4", "<f8", ">f4", "|b1", "<u8"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_arrays_come_back_as_they_went(dtype: str, shape: tuple[int, ...]) -> None:
    sent = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    found = decode(encode({"a": sent, "b": [sent, {"c": "words"}]}))
    for one in (found["a"], found["b"][0]):
        assert one.dtype == sent.dtype
        np.testing.assert_array_equal(one, sent)
    assert found["b"][1] == {"c": "words"}


def test_scalars_keep_their_dtype() -> None:
    found = decode(encode({"a": np.float32(1.5), "b": np.int16(-3), "c": 2.5, "d": True}))
    assert (found["a"].dtype, found["b"].dtype) == (np.float32, np.int16)
    assert (found["a"], found["b"], found["c"], found["d"]) == (1.5, -3, 2.5, True)


def array(**more: Any) -> bytes:
    parts = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [2]}
    parts.update({key.encode(): value for key, value in more.items()})
    return msgpack.Packer().pack({"state": parts})


HOSTILE = {
    "objects": (array(dtype="|O"), "dtype '|O'"),
    "void": (array(dtype="|V1000000000", shape=[]), "dtype '|V10"),
    "structured": (array(dtype=[["x", "<f4"]]), "dtype"),
    "complex": (array(dtype="<c8", shape=[1]), "dtype '<c8'"),
    "strings": (array(dtype="<U2", shape=[1]), "dtype '<U2'"),
    "dates": (array(dtype="<M8[s]", shape=[1]), "dtype"),
    "too few bytes": (array(shape=[3]), "with 8 bytes, expected 12"),
    "huge": (array(shape=[1 << 40]), "expected at most 6 sizes"),
    "product overflows": (array(shape=[(1 << 31) - 1] * 6), "with 8 bytes"),
    "negative": (array(shape=[-1]), "sizes"),
    "many axes": (array(shape=[1] * 7), "sizes"),
    "shape of floats": (array(shape=[2.0]), "sizes"),
    "shape of booleans": (array(shape=[True, True]), "sizes"),
    "no data": (array(data=None), "without data and shape"),
    "data in words": (array(data="12345678"), "without data and shape"),
    "not msgpack": (b"\xc1", "not msgpack"),
    "truncated": (STATE[:-1], "not msgpack"),
    "more behind it": (STATE + b"\0", "not msgpack"),
    "nothing": (b"", "not msgpack"),
    "deep": (b"\x91" * 400 + b"\x90", "nested deeper"),
    "deeper": (b"\x91" * 100_000 + b"\x90", "not msgpack"),
    "a length that lies": (b"\xdd\xff\xff\xff\xff", "exceeds max_array_len"),
    "a map as key": (b"\x81\x80\x01", "not msgpack"),
    "a number as key": (b"\x81\x01\x01", "expected words"),
    "a scalar of words": (
        msgpack.packb({b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"}),
        "holds a str",
    ),
    "a scalar too large": (
        msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}),
        "not msgpack",
    ),
    "a scalar half an integer": (
        msgpack.packb({b"__npgeneric__": True, b"data": 0.5, b"dtype": "<i4"}),
        "expected an integer",
    ),
    "words that are no UTF-8": (b"\xa2\xff\xfe", "not msgpack"),
    "an extension": (msgpack.packb({"a": msgpack.ExtType(5, b"x")}), "a ExtType"),
    "a list that is too long": (
        b"\xdd\x00\x80\0\0" + b"\xc0" * (1 << 23),
        "send numbers as arrays",
    ),
    "many long lists": (
        b"\xdc\x01\x00" + (b"\xdc\x03\xe8" + b"\xc0" * 1000) * 256,
        "more than 65536 items",
    ),
    "many maps": (
        b"\xdc\x03\xe8" + (b"\xdc\x03\xe8" + b"\x80" * 1000) * 1000,
        "more than 65536 items",
    ),
    "lists that only begin": (b"\xdc\x04\x00" * 3000, "not msgpack"),
    "a long key": (b"\x81\xda\x10\x00" + b"x" * 4096 + b"\xc0", "of 4096 letters"),
    "a long key of bytes": (b"\x81\xc5\x10\x00" + b"x" * 4096 + b"\xc0", "of 4096 letters"),
    "a long text": (b"\xdb\x00\x10\x00\x00" + b"x" * (1 << 20), "exceeds max_str_len"),
    "a time": (b"\x81\xa1a\xd6\xff\x00\x00\x00\x00", "a Timestamp"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_messages_are_refused(name: str) -> None:
    data, said = HOSTILE[name]
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=said.replace("|", r"\|")):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_a_message_that_is_too_large_is_not_looked_at() -> None:
    with pytest.raises(InputError, match="expected at most 10"):
        decode(STATE, most=10)


def test_what_cannot_be_sent_is_refused() -> None:
    for value in (object(), np.array([None]), np.array(["x"]), 1 << 70, {"a": {1, 2}}):
        with pytest.raises(InputError, match=r"cannot be sent|dtype"):
            encode({"a": value})


def fuzz(count: int, seed: int) -> int:
    """Random changes of good messages; returns how many still decode."""
    rng = random.Random(seed)
    image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    good = [STATE, encode({"image": image, "state": np.zeros(7), "prompt": "pick", "n": [1, 2.5]})]
    decoded = 0
    for _ in range(count):
        data = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 6)):
            kind, at = rng.randrange(4), rng.randrange(len(data))
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 2:
                del data[at : at + rng.randint(1, 9)]
            else:
                data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 9)))
            if not data:
                break
        try:
            decode(bytes(data))
            decoded += 1
        except InputError:
            pass
    return decoded


def test_changed_messages_decode_or_are_refused() -> None:
    """Never another exception."""
    assert 0 < fuzz(5_000, seed=1) < 5_000


@pytest.mark.ci
def test_many_changed_messages_decode_or_are_refused() -> None:
    assert 0 < fuzz(200_000, seed=2) < 200_000
