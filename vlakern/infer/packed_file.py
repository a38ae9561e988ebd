"""Packed weights in a file that processes map and share.

Layout: a line with the magic, where the JSON header is, its SHA-256 and a sum over the arrays; the
arrays, each of which begins a cache line; and the header. A file whose key differs from what is
asked for is stale and is written again.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlakern import env
from vlakern.errors import CheckpointError, ConfigError
from vlakern.files import write_file
from vlakern.infer.packing import DTYPES, PackedModel, Weights, pack_arrays, pack_model
from vlakern.models.config import VLAConfig
from vlakern.ops import _native
from vlakern.ops.linear import PackedLinear
from vlakern.ops.linear.packed import ISA, LAYOUT
from vlakern.ops.linear.reference import KINDS
from vlakern.records import from_dict, to_dict
from vlakern.untrusted import parse_json

__all__ = ["cache_path", "cached_model", "read_packed", "weights_key", "write_packed"]

log = logging.getLogger("vlakern.infer")

MAGIC = b"VLAKPACK"
SUM = 56  # where the sum over the arrays is
FORMAT = 3
LINE = 64
MOST_HEADER = 16 << 20
FACTS = ("n", "k", "kind", "gate", "has_bias")  # of a matrix
STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int32": torch.int32}
SMALL = 64 << 20  # bytes of weights below which packing is faster than finding a file


@dataclass(frozen=True)
class _Entry:
    """One array: a tensor, or the flat tensor of a packed matrix with its facts."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    matrix: dict[str, Any] | None = None


def weights_key(config: VLAConfig, dtype: str, weights: Path) -> str:
    """What a packed file depends on, as one hash: layout, sizes, dtype and which weights."""
    status = weights.stat()
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = hashlib.sha256(file.read(min(length, MOST_HEADER))).hexdigest()
    facts = [
        FORMAT,
        LAYOUT,
        ISA,
        dtype,
        to_dict(config),
        header,
        status.st_size,
        status.st_mtime_ns,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def cache_path(directory: Path, dtype: str, key: str) -> Path:
    """Beside the policy if that can be written to, else in the user's cache directory."""
    name = f"{ISA}-{dtype}.vlakern"
    if os.access(directory, os.W_OK):
        return directory / "packed" / name
    return env.cache_directory() / "packed" / f"{key[:32]}-{name}"


def cached_model(
    directory: Path,
    config: VLAConfig,
    dtype: str,
    weights_file: Path,
    weights: Weights,
    seen: Callable[[str], None] | None = None,
) -> PackedModel:
    """The packed weights of a policy directory, from a file that is written if it is not there.

    Small models are packed in memory, and so are all where no file can be written, with a warning.
    A damaged or stale file is replaced, and said so by ``seen`` alone: the weights it came from are
    there.

    Raises:
        CheckpointError: a weight is not finite.
    """
    if weights_file.stat().st_size < SMALL:
        return pack_model(config, weights, dtype, seen)
    key = weights_key(config, dtype, weights_file)
    path = cache_path(directory, dtype, key)
    try:
        return read_packed(path, key)
    except CheckpointError:
        pass
    try:
        write_packed(path, key, config, dtype, weights, seen)
    except OSError as error:
        log.warning("packed weights could not be written to be used again: %s", error)
        return pack_model(config, weights, dtype, seen)
    return read_packed(path, key)


def write_packed(
    path: Path,
    key: str,
    config: VLAConfig,
    dtype: str,
    weights: Weights,
    seen: Callable[[str], None] | None = None,
) -> None:
    """Packs into ``path``, one array at a time, so that no copy of the weights is in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            writer = _Writer(file)
            for name, one in pack_arrays(config, weights, dtype):
                writer.write(name, one)
                if seen is not None:
                    seen(name)
            end = writer.finish({"key": key, "dtype": dtype, "config": to_dict(config)})
        memory = torch.from_file(str(temporary), size=end, dtype=torch.uint8)
        with temporary.open("r+b") as file:
            file.seek(SUM)
            file.write(_sum(memory[LINE:]))

    write_file(path, fill)


def _sum(arrays: Tensor) -> bytes:
    """Over everything between front and header, at the speed of memory."""
    threads = torch.get_num_threads()
    found: int = _native.cpu_module().checksum(arrays.data_ptr(), arrays.nbytes, threads)
    return found.to_bytes(8, "little")


class _Writer:
    """Arrays first, the header behind them; the fixed front says where it is."""

    def __init__(self, file: BufferedWriter) -> None:
        self._file = file
        self._entries: list[_Entry] = []
        file.write(bytes(LINE))

    def write(self, name: str, one: PackedLinear | Tensor) -> None:
        facts, tensor = None, one
        if isinstance(one, PackedLinear):
            tensor = one.data
            facts = {key: getattr(one, key) for key in FACTS}
        assert isinstance(tensor, Tensor)
        self._file.write(bytes(-self._file.tell() % LINE))
        dtype = str(tensor.dtype).removeprefix("torch.")
        entry = _Entry(name, dtype, tuple(tensor.shape), self._file.tell(), facts)
        self._entries.append(entry)
        flat = tensor.contiguous().view(-1).view(torch.uint8)
        self._file.write(flat.numpy().data)

    def finish(self, header: dict[str, Any]) -> int:
        """Returns where the arrays end."""
        entries = [
            [one.name, one.dtype, list(one.shape), one.offset, one.matrix] for one in self._entries
        ]
        begin = self._file.tell()
        text = json.dumps({**header, "arrays": entries}).encode()
        self._file.write(text)
        self._file.seek(0)
        sizes = begin.to_bytes(8, "little") + len(text).to_bytes(8, "little")
        self._file.write(MAGIC + sizes + hashlib.sha256(text).digest())
        return begin


def read_packed(path: Path, key: str) -> PackedModel:
    """Maps a packed file and compares the sum over its arrays, which also brings its pages in.

    Raises:
        CheckpointError: it is not there, damaged, or packed from something else.
    """
    header, end, total = _header(path)
    if header.get("key") != key:
        raise CheckpointError(f"{path} was packed from other weights or by another version")
    if header.get("dtype") not in DTYPES:
        raise CheckpointError(f"{path} holds weights of dtype {header.get('dtype')!r}")
    try:
        config = from_dict(VLAConfig, header.get("config"), str(path))
        memory = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
    except (ConfigError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if _sum(memory[LINE:end]) != total:
        raise CheckpointError(f"{path} is damaged: its arrays are not those that were written")
    matrices: dict[str, PackedLinear] = {}
    tensors: dict[str, Tensor] = {}
    for found in header["arrays"]:
        entry = _entry(path, found)
        array = _array(path, entry, memory)
        if entry.matrix is None:
            tensors[entry.name] = array
        else:
            matrices[entry.name] = PackedLinear(array, **entry.matrix)
    return PackedModel(config, header["dtype"], matrices, tensors)


def _entry(path: Path, found: Any) -> _Entry:
    """One line of the header, which anyone may have written."""
    if isinstance(found, list) and len(found) == 5:
        name, dtype, shape, offset, facts = found
        known = isinstance(name, str) and isinstance(dtype, str) and dtype in STORED
        counts = isinstance(shape, list) and all(_is_count(one) for one in [*shape, offset])
        if known and counts and offset % LINE == 0 and (facts is None or _are_facts(facts)):
            return _Entry(name, dtype, tuple(shape), offset, facts)
    raise CheckpointError(f"{path} has a damaged header: {str(found)[:80]} is no array")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _are_facts(facts: Any) -> bool:
    if not isinstance(facts, dict) or set(facts) != set(FACTS):
        return False
    counts = _is_count(facts["n"]) and _is_count(facts["k"]) and facts["kind"] in tuple(KINDS)
    return counts and type(facts["gate"]) is type(facts["has_bias"]) is bool


def _array(path: Path, entry: _Entry, memory: Tensor) -> Tensor:
    """A view of the mapped file."""
    kind = STORED[entry.dtype]
    end = entry.offset + math.prod(entry.shape) * kind.itemsize
    if end > memory.numel() or (entry.matrix is not None and kind != torch.int32):
        raise CheckpointError(f"{path} is damaged: {entry.name} does not lie within it")
    return memory[entry.offset : end].view(kind).view(entry.shape)


def _header(path: Path) -> tuple[dict[str, Any], int, bytes]:
    """The header, where the arrays end and the sum over them."""
    if not path.is_file():
        raise CheckpointError(f"{path} is not there")
    try:
        with path.open("rb") as file:
            front, size = file.read(LINE), os.fstat(file.fileno()).st_size
            begin, length = (int.from_bytes(front[i : i + 8], "little") for i in (8, 16))
            whole = begin >= LINE and begin + length == size
            if front[:8] != MAGIC or length > MOST_HEADER or not whole:
                raise CheckpointError(f"{path} is not a whole file of packed weights")
            file.seek(begin)
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if hashlib.sha256(text).digest() != front[24:56]:
        raise CheckpointError(f"{path} has a damaged header")
    try:
        header = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path} has a damaged header: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get("arrays"), list):
        raise CheckpointError(f"{path} has a damaged header")
    return header, begin, front[SUM:LINE]
