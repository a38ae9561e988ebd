"""``tf.train.Example`` messages: where each feature lies, and its values.

An Example is field 1, Features; that is repeated field 1, entries of a map from name (1) to Feature
(2); a Feature is one of BytesList (1), FloatList (2) and Int64List (3), each repeated field 1. See
TensorFlow's ``feature.proto`` and protobuf's encoding guide. Numbers may be packed or not.
"""

from collections.abc import Iterator

import numpy as np

__all__ = ["Malformed", "count", "features", "floats", "integers", "items"]

Span = tuple[int, int]
_VARINT, _FIXED64, _BLOCK, _FIXED32 = 0, 1, 2, 5
_BYTES, _FLOATS, _INTEGERS = 1, 2, 3
_KINDS = {_BYTES: "bytes", _FLOATS: "floats", _INTEGERS: "integers"}
# A varint of 64 bits has at most this many bytes of 7.
_LONGEST = 10


class Malformed(ValueError):
    """Bytes that are no ``tf.train.Example``, or a feature of another kind."""


def features(data: memoryview) -> dict[str, Span]:
    """Name -> first and last byte of its Feature; nothing of the values is read."""
    found: dict[str, Span] = {}
    for number, kind, first, last in _fields(data, 0, len(data)):
        if (number, kind) != (1, _BLOCK):
            continue
        for entry, entry_kind, begin, end in _fields(data, first, last):
            if (entry, entry_kind) == (1, _BLOCK):
                name, span = _entry(data, begin, end)
                found[name] = span
    return found


def count(data: memoryview, span: Span) -> int:
    """Values of a feature, whatever its kind."""
    kind, spans = _lists(data, span)
    total = 0
    for first, last in spans:
        for _, wire, begin, end in _values(data, first, last):
            if wire != _BLOCK or kind == _BYTES:
                total += 1
            elif kind == _FLOATS:
                total += (end - begin) // 4
            else:
                total += int((np.frombuffer(data[begin:end], np.uint8) < 0x80).sum())
    return total


def items(data: memoryview, span: Span) -> list[Span]:
    """Where each value of a BytesList lies."""
    found: list[Span] = []
    for first, last in _spans_of(data, span, _BYTES):
        for _, wire, begin, end in _values(data, first, last):
            if wire != _BLOCK:
                raise Malformed("a list of bytes holds a number")
            found.append((begin, end))
    return found


def floats(data: memoryview, span: Span) -> np.ndarray:
    """The values of a FloatList: float32 ``[N]``."""
    parts: list[np.ndarray] = []
    for first, last in _spans_of(data, span, _FLOATS):
        for _, wire, begin, end in _values(data, first, last):
            if wire not in (_BLOCK, _FIXED32) or (end - begin) % 4:
                raise Malformed("a list of floats is not a whole number of them")
            parts.append(np.frombuffer(data[begin:end], "<f4"))
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)


def integers(data: memoryview, span: Span) -> np.ndarray:
    """The values of an Int64List: int64 ``[N]``."""
    parts: list[np.ndarray] = []
    for first, last in _spans_of(data, span, _INTEGERS):
        for _, wire, begin, end in _values(data, first, last):
            if wire not in (_BLOCK, _VARINT):
                raise Malformed("a list of integers holds something else")
            parts.append(_varints(np.frombuffer(data[begin:end], np.uint8)))
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _varints(values: np.ndarray) -> np.ndarray:
    """Numbers of 7 bits a byte, the lowest first; a byte below 128 is the last of its number."""
    ends = np.flatnonzero(values < 0x80)
    if len(values) and (not len(ends) or ends[-1] != len(values) - 1):
        raise Malformed("an integer is cut off")
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64) if len(ends) else ends
    length = ends - starts + 1
    if len(length) and length.max() > _LONGEST:
        raise Malformed("an integer is longer than 64 bits")
    result = np.zeros(len(ends), np.uint64)
    for k in range(int(length.max(initial=0))):
        there = length > k
        bits = (values[starts[there] + k] & 0x7F).astype(np.uint64)
        result[there] |= bits << np.uint64(7 * k)
    return result.astype(np.int64)


def _spans_of(data: memoryview, span: Span, wanted: int) -> list[Span]:
    kind, spans = _lists(data, span)
    if kind not in (0, wanted):
        raise Malformed(f"it holds {_KINDS[kind]}, expected {_KINDS[wanted]}")
    return spans


def _lists(data: memoryview, span: Span) -> tuple[int, list[Span]]:
    """The kind of a Feature, 0 of an empty one, and its list, in as many parts as it came in."""
    kind, spans = 0, []
    for number, wire, begin, end in _fields(data, *span):
        if number in _KINDS and wire == _BLOCK:
            # Of several kinds the last one holds.
            spans = [*spans, (begin, end)] if number == kind else [(begin, end)]
            kind = number
    return kind, spans


def _values(data: memoryview, first: int, last: int) -> Iterator[tuple[int, int, int, int]]:
    return (field for field in _fields(data, first, last) if field[0] == 1)


def _entry(data: memoryview, first: int, last: int) -> tuple[str, Span]:
    name, span = b"", (last, last)
    for number, wire, begin, end in _fields(data, first, last):
        if number == 1 and wire == _BLOCK:
            name = bytes(data[begin:end])
        elif number == 2 and wire == _BLOCK:
            span = (begin, end)
    try:
        return name.decode(), span
    except UnicodeDecodeError:
        raise Malformed(f"a feature is named {name!r}, which is no text") from None


def _fields(data: memoryview, first: int, last: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, first and last byte of each field of a message."""
    place = first
    while place < last:
        key, place = _varint(data, place, last)
        number, wire = key >> 3, key & 7
        begin = place
        if wire == _VARINT:
            _, place = _varint(data, place, last)
        elif wire == _BLOCK:
            size, begin = _varint(data, place, last)
            place = begin + size
        elif wire in (_FIXED64, _FIXED32):
            place += 8 if wire == _FIXED64 else 4
        else:
            raise Malformed(f"a field has wire type {wire}")
        if place > last or number == 0:
            raise Malformed("a field ends after its message")
        yield number, wire, begin, place


def _varint(data: memoryview, place: int, last: int) -> tuple[int, int]:
    """One number and the place after it."""
    value = 0
    for k in range(_LONGEST):
        if place + k >= last:
            raise Malformed("a number is cut off")
        byte = data[place + k]
        value |= (byte & 0x7F) << (7 * k)
        if byte < 0x80:
            return value, place + k + 1
    raise Malformed("a number is longer than 64 bits")
