"""openpi's websocket payloads: msgpack with arrays, decoded so that no peer can do harm.

An array is a map with the byte-string keys ``__ndarray__``, ``data``, ``dtype`` and ``shape``; a
numpy scalar one with ``__npgeneric__``, ``data`` and ``dtype`` (openpi-client 0.1.2). Nothing is
unpickled, no dtype outside ``DTYPES`` is made, and an array is a view of the bytes that came.
"""

import math
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgpack
import numpy as np

from vlakern.errors import InputError

__all__ = ["DTYPES", "MOST_BYTES", "decode", "encode", "pieces"]

# Kinds of numbers and nothing else: objects would be pointers, void a few bytes made gigabytes.
DTYPES = frozenset(
    np.dtype(name).str.lstrip("<>|=")
    for name in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64"),
    )
)
MOST_BYTES = 16 << 20
MOST_AXES = 6
MOST_DEPTH = 16
# An item may take one byte on its way and a hundred here, and a list its room before its items.
MOST_ITEMS, MOST_WIDE = 1 << 16, 1 << 10  # of a message, of one list or map
MOST_WORDS, MOST_KEY = 1 << 16, 256  # bytes of a text, characters of a key
SHOWN = 40
SMALL = 4096  # bytes of an array that is copied between the words
PLAIN = (str, bytes, bool, int, float, type(None), np.ndarray, np.generic)
ARRAY, SCALAR = b"__ndarray__", b"__npgeneric__"


def encode(value: Any) -> bytes:
    """A map of names to arrays, numbers, words, and lists or maps of them.

    Raises:
        InputError: something else is inside it.
    """
    return b"".join(pieces(value))


def pieces(value: Any) -> "list[bytes | memoryview]":
    """:func:`encode` without its copy: joined they are the message, arrays stay where they are.

    Raises:
        InputError: as :func:`encode`.
    """
    found = _Pieces()
    try:
        found.add(value, MOST_DEPTH)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"cannot be sent: {error}") from error
    return found.all()


class _Pieces:
    """msgpack's own words between views of arrays: its packer copies an array three times."""

    def __init__(self) -> None:
        self._pack = msgpack.Packer().pack
        self._small: list[bytes] = []
        self._done: list[bytes | memoryview] = []

    def all(self) -> "list[bytes | memoryview]":
        self._done.append(b"".join(self._small))
        return self._done

    def add(self, value: Any, left: int) -> None:
        if left == 0:
            raise InputError(f"a message nested deeper than {MOST_DEPTH} cannot be sent")
        if isinstance(value, np.ndarray):
            self._array(value)
        elif isinstance(value, np.generic):
            _check_dtype(value.dtype.str)
            scalar = {SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
            self._small.append(self._pack(scalar))
        elif isinstance(value, Mapping):
            self._small.append(_map_head(len(value)))
            for key, inside in value.items():
                self._small.append(_word(key) if type(key) is str else self._pack(_plain(key)))
                self.add(inside, left - 1)
        elif isinstance(value, (list, tuple)):
            self._small.append(_list_head(len(value)))
            for inside in value:
                self.add(inside, left - 1)
        else:
            self._small.append(self._pack(_plain(value)))

    def _array(self, array: np.ndarray) -> None:
        before, behind = _around(array.dtype.str, array.shape, array.nbytes)
        self._small.append(before)
        if array.nbytes <= SMALL:
            self._small.append(array.tobytes())
        else:
            self._done.append(b"".join(self._small))
            self._done.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            self._small = []
        self._small.append(behind)


@lru_cache(maxsize=1024)
def _word(key: str) -> bytes:
    return msgpack.Packer().pack(key)


@lru_cache(maxsize=256)
def _around(dtype: str, shape: tuple[int, ...], count: int) -> tuple[bytes, bytes]:
    """What stands before an array's bytes, and behind them."""
    _check_dtype(dtype)
    pack = msgpack.Packer().pack
    before = b"".join((_map_head(4), pack(ARRAY), pack(True), pack(b"data"), _head(count)))
    return before, b"".join([pack(one) for one in (b"dtype", dtype, b"shape", shape)])


def _map_head(count: int) -> bytes:
    return msgpack.Packer().pack_map_header(count) if count > 15 else bytes([0x80 | count])


def _list_head(count: int) -> bytes:
    return msgpack.Packer().pack_array_header(count) if count > 15 else bytes([0x90 | count])


def _head(count: int) -> bytes:
    """msgpack's marker of so many bytes."""
    if count < 1 << 8:
        return struct.pack(">BB", 0xC4, count)
    if count < 1 << 16:
        return struct.pack(">BH", 0xC5, count)
    return struct.pack(">BI", 0xC6, count)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bytes, bytearray, memoryview, int, float)):
        return value
    raise InputError(f"a {type(value).__name__} cannot be sent; send arrays, numbers and words")


def decode(data: bytes, most: int = MOST_BYTES) -> Any:
    """What :func:`encode` was given; arrays are read-only views of ``data``.

    Raises:
        InputError: the bytes are no such message, or larger than ``most``, or would take much more
            room than they have bytes.
    """
    if len(data) > most:
        raise InputError(f"a message of {len(data)} bytes, expected at most {most}")
    count = _Count()
    try:
        value = msgpack.unpackb(
            data,
            strict_map_key=False,
            object_hook=count.map,
            list_hook=count.list,
            max_array_len=MOST_WIDE,
            max_map_len=MOST_WIDE,
            max_str_len=MOST_WORDS,
        )
    except InputError:
        raise
    # What msgpack raises for bytes that are none of its own, and for keys that cannot be keys.
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError, OverflowError) as error:
        if "exceeds max_" in str(error):
            raise InputError(f"a text, list or map ({error}); send numbers as arrays") from error
        why = str(error) or type(error).__name__
        raise InputError(f"a message that is not msgpack: {why}") from error
    _check(value, MOST_DEPTH)
    return value


class _Count:
    """Of the items that a message has had so far."""

    def __init__(self) -> None:
        self._left = MOST_ITEMS

    def list(self, found: list[Any]) -> list[Any]:
        self._take(len(found))
        return found

    def map(self, found: dict[Any, Any]) -> Any:
        self._take(len(found))
        return _unpacked(found)

    def _take(self, items: int) -> None:
        self._left -= items + 1
        if self._left < 0:
            raise InputError(f"a message of more than {MOST_ITEMS} items; send numbers as arrays")


def _unpacked(found: dict[Any, Any]) -> Any:
    if ARRAY in found:
        return _array(found)
    if SCALAR in found:
        return _scalar(found)
    return found


def _array(found: dict[Any, Any]) -> np.ndarray:
    data, dtype, shape = (found.get(key) for key in (b"data", b"dtype", b"shape"))
    wanted = _check_dtype(dtype)
    if not isinstance(data, bytes) or not isinstance(shape, (list, tuple)):
        raise InputError("an array without data and shape; expected bytes and a list of sizes")
    good = len(shape) <= MOST_AXES
    for size in shape:
        good = good and type(size) is int and 0 <= size < 1 << 31
    if not good:
        raise InputError(f"an array of shape {str(shape)[:80]}, expected at most {MOST_AXES} sizes")
    needed = math.prod(shape) * wanted.itemsize
    if needed != len(data):
        raise InputError(
            f"an array {wanted.name}{list(shape)} with {len(data)} bytes, expected {needed}"
        )
    return np.frombuffer(data, wanted).reshape(shape)


def _scalar(found: dict[Any, Any]) -> np.generic:
    wanted, value = _check_dtype(found.get(b"dtype")), found.get(b"data")
    if type(value) not in (bool, int, float):
        raise InputError(f"a numpy scalar that holds a {type(value).__name__}, expected a number")
    if isinstance(value, float) and wanted.kind in "iub":
        raise InputError(f"a numpy scalar {wanted.name} that holds {value}, expected an integer")
    with np.errstate(over="ignore"):  # an infinity, as in any array
        return wanted.type(value)


def _check_dtype(name: Any) -> np.dtype[Any]:
    found = _dtype(name) if isinstance(name, str) and len(name) <= 8 else None
    if found is None:
        raise InputError(f"an array of dtype {_shown(name)}, expected integers, floats or booleans")
    return found


@lru_cache(maxsize=64)
def _dtype(name: str) -> np.dtype[Any] | None:
    return np.dtype(name) if name.lstrip("<>|=") in DTYPES else None


def _shown(value: Any) -> str:
    """The beginning of what came, for a sentence."""
    if isinstance(value, (str, bytes)):
        return repr(value[:SHOWN])
    return repr(value) if isinstance(value, (int, float)) else f"a {type(value).__name__}"


def _check(value: Any, left: int) -> None:
    if left == 0:
        raise InputError(f"a message nested deeper than {MOST_DEPTH}")
    if isinstance(value, dict):
        for key, inside in value.items():
            if not isinstance(key, (str, bytes)):
                raise InputError(f"a key {_shown(key)}, expected words")
            if len(key) > MOST_KEY:
                raise InputError(
                    f"a key {_shown(key)}... of {len(key)} letters, expected {MOST_KEY}"
                )
            _check(inside, left - 1)
    elif isinstance(value, list):
        for inside in value:
            _check(inside, left - 1)
    elif not isinstance(value, PLAIN):
        raise InputError(f"a {type(value).__name__}, expected arrays, numbers and words")
