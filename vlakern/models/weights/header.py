"""The header of a safetensors file, read strictly: before anything is mapped, all of it is checked.

Layout: the header's length in 8 bytes, little-endian; the header, a JSON object of
``name: {"dtype", "shape", "data_offsets"}`` and perhaps ``__metadata__``; the tensors' bytes.
"""

import math
import os
from typing import Any, BinaryIO, NamedTuple

import torch

from vlakern.untrusted import POINTER, parse_json, shown

__all__ = ["DTYPES", "MOST_HEADER", "MOST_TENSORS", "HeaderError", "TensorInfo", "read_header"]

MOST_HEADER = 16 << 20  # bytes
MOST_TENSORS = 5_000  # as many as can be checked in a moment; the largest policies have 1,500
MOST_NAME = 512  # characters
MOST_DIMS = 8
MOST_SIZE = 1 << 48  # values of a dimension, or of all that are not empty
METADATA = "__metadata__"
KEYS = {"dtype", "shape", "data_offsets"}
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
}


class HeaderError(ValueError):
    """What is wrong with a header, as half a sentence."""


class TensorInfo(NamedTuple):
    """One tensor of a file.

    Attributes:
        dtype: as the file spells it, a key of ``DTYPES``.
        shape: of the tensor.
        begin, end: its bytes, counted from the file's first.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: BinaryIO) -> dict[str, TensorInfo]:
    """Every tensor by name; together they fill the file without gap or overlap.

    Raises:
        HeaderError: the file is not a safetensors file, is cut off or contradicts itself.
    """
    size = os.fstat(file.fileno()).st_size
    first = file.read(8)
    if len(first) < 8:
        raise HeaderError(f"it has {len(first)} bytes")
    length = int.from_bytes(first, "little")
    if first.startswith((b"PK\x03\x04", b"\x80")) and length > MOST_HEADER:
        raise HeaderError("it begins like a file of torch.save, which may run code when it is read")
    if POINTER.startswith(first):
        raise HeaderError("it is a pointer of git-lfs and not the file itself")
    if length > MOST_HEADER:
        raise HeaderError(f"its header claims {length} bytes, at most {MOST_HEADER} are read")
    if 8 + length > size:
        raise HeaderError(f"its header claims {length} bytes, {size - 8} are left")
    content = file.read(length)
    if len(content) != length or not content.startswith(b"{"):
        raise HeaderError("its header is not a JSON object")
    try:
        values = parse_json(content)
    except ValueError as error:
        raise HeaderError(f"its header: {str(error)[:200]}") from error
    _check_metadata(values.pop(METADATA, {}))
    if len(values) > MOST_TENSORS:
        raise HeaderError(f"it holds {len(values)} tensors, at most {MOST_TENSORS} are read")
    found = {name: _info(name, value, 8 + length) for name, value in values.items()}
    _check_offsets(found, 8 + length, size)
    return found


def _check_metadata(value: Any) -> None:
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise HeaderError(f"its {METADATA} are not words by name")
    if not all(map(_is_text, [*value, *value.values()])):
        raise HeaderError(f"its {METADATA} hold half a surrogate pair")


def _info(name: str, value: Any, start: int) -> TensorInfo:
    """One entry; ``start`` is where the tensors' bytes begin."""
    if not name or len(name) > MOST_NAME or not name.isprintable():
        raise HeaderError(f"{shown(name)} is no name for a tensor")
    if not isinstance(value, dict) or value.keys() != KEYS:
        raise HeaderError(f"tensor {shown(name)} is not described by {', '.join(sorted(KEYS))}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise HeaderError(f"tensor {shown(name)} has dtype {shown(dtype)}, which is unknown")
    if not _are_sizes(shape) or len(shape) > MOST_DIMS:
        raise HeaderError(f"tensor {shown(name)} has shape {shown(shape)}")
    # A dimension of 0 must not hide that the others are absurd.
    if math.prod([n or 1 for n in shape]) > MOST_SIZE:
        raise HeaderError(f"tensor {shown(name)} has the absurd shape {shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise HeaderError(f"tensor {shown(name)} has data_offsets {shown(offsets)}")
    begin, end = offsets
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != needed:
        raise HeaderError(
            f"tensor {shown(name)} of {dtype} {shown(shape)} needs {needed} bytes, its"
            f" data_offsets are {shown(offsets)}"
        )
    return TensorInfo(dtype, tuple(shape), start + begin, start + end)


def _are_sizes(values: Any) -> bool:
    if not isinstance(values, list):
        return False
    return all(type(one) is int and 0 <= one <= MOST_SIZE for one in values)


def _is_text(text: str) -> bool:
    """Whether it has UTF-8: JSON's escapes can spell half a surrogate pair, which has none."""
    return text.isascii() or not any("\ud800" <= one <= "\udfff" for one in text)


def _check_offsets(found: dict[str, TensorInfo], start: int, size: int) -> None:
    """One after the other, from the header's end to the file's."""
    at = start
    for name, one in sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)):
        if one.begin != at:
            what = "overlaps the tensor before it" if one.begin < at else "leaves a gap before it"
            raise HeaderError(f"tensor {shown(name)} {what}")
        at = one.end
    if at != size:
        what = "are missing" if at > size else "belong to no tensor"
        raise HeaderError(f"{abs(size - at)} bytes at its end {what}")
