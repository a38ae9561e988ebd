"""Checkpoints that survive a killed process, a full disk and a flipped bit.

A checkpoint is a directory of safetensors and JSON with a manifest of SHA-256 of every file. It is
written beside its place, synced, and renamed last; :func:`save` returns only after that is on disk.
The manifest has one spelling and its own hash, so that a flip in it is seen as well.
"""

import hashlib
import json
import os
import re
import shutil
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import vlakern
from vlakern.errors import CheckpointError
from vlakern.files import atomic_directory

__all__ = [
    "TrainState",
    "check_directory",
    "checkpoints",
    "difference",
    "facts",
    "newest_good",
    "read",
    "save",
    "set_aside",
    "verify",
]

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.json"
NAME = re.compile(r"save-(\d{6,})-step-(\d+)")
TENSOR_FILE = re.compile(r"[a-z_]{1,40}\.safetensors")
ASIDE = ".damaged"
MANIFEST_LIMIT, STATE_LIMIT = 1 << 20, 1 << 26
BLOCK = 1 << 24
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainState:
    """Where a run stands.

    Attributes:
        step: optimizer steps that are done.
        part: micro-batches of the next step that are done; their gradients are among the tensors.
        tensors: by file (model, master, optimizer, average, ...), by name.
        config: what the run was started with.
        progress: counters and the position in the data, as plain JSON.
        versions: what wrote it; filled in by :func:`save`.
    """

    step: int
    part: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    config: Mapping[str, Any] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def loudly(text: str) -> None:
    """Tells people on standard error, framed so that it is not lost among lines of progress."""
    print(f"\n*** vlakern: {text} ***", file=sys.stderr, flush=True)


def save(directory: Path, state: TrainState, keep: int = 3) -> Path:
    """Writes a checkpoint below ``directory`` and returns its path once it is on disk.

    Afterwards the newest ``keep`` are kept, the others deleted, and so is what a killed process
    left half-written.

    Raises:
        OSError: the disk takes no more; nothing half-written is left and the older ones stay.
        CheckpointError: a tensor of a dtype that is not stored.
    """
    if not directory.exists():
        directory.mkdir(parents=True)
        _sync(directory.parent)
    older = checkpoints(directory)
    number = 1 + max((_number(path) for path in older), default=0)
    target = directory / f"save-{number:06d}-step-{state.step:08d}"
    with atomic_directory(target) as temporary:
        hashes = {
            f"{stem}.safetensors": _write(temporary / f"{stem}.safetensors", _safetensors(tensors))
            for stem, tensors in sorted(state.tensors.items())
        }
        values = {
            "step": state.step,
            "part": state.part,
            "config": state.config,
            "progress": state.progress,
            "versions": {"vlakern": vlakern.__version__, "torch": torch.__version__},
        }
        text = json.dumps(values, indent=2, allow_nan=False) + "\n"
        hashes[STATE] = _write(temporary / STATE, iter([text.encode()]))
        _write(temporary / MANIFEST, iter([_manifest(hashes)]))
    _prune(directory, [*older, target], keep)
    return target


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints below a directory, the oldest first; whether they are good is not asked."""
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if NAME.fullmatch(p.name)), key=_number)


def check_directory(directory: Path) -> None:
    """Refuses a place that holds anything but checkpoints, because old ones are deleted there.

    Raises:
        CheckpointError: naming the directory and what is in it.
    """
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory; checkpoints need one of their own")
    for path in sorted(directory.iterdir()) if directory.exists() else ():
        if not NAME.fullmatch(path.name.removesuffix(ASIDE)) and not _unfinished(path):
            raise CheckpointError(
                f"{directory} holds {path.name!r}, which is not a checkpoint; choose another --out"
                " or move it away"
            )


def newest_good(directory: Path, say: Say = loudly) -> Path | None:
    """The newest checkpoint that verifies, or None if there is none at all.

    Raises:
        CheckpointError: there are checkpoints and every one is damaged.
    """
    found = checkpoints(directory)
    for path in reversed(found):
        try:
            verify(path)
            return path
        except (CheckpointError, OSError) as error:
            say(f"checkpoint {path.name} cannot be used, falling back to the one before: {error}")
    if found:
        raise CheckpointError(
            f"none of the {len(found)} checkpoints in {directory} is undamaged; start again with"
            " --overwrite or bring back a copy"
        )
    return None


def set_aside(directory: Path, good: Path) -> None:
    """Renames what is newer than the good checkpoint, so that it does not count among the kept."""
    for path in checkpoints(directory):
        if _number(path) > _number(good):
            shutil.rmtree(path.with_name(path.name + ASIDE), ignore_errors=True)
            path.rename(path.with_name(path.name + ASIDE))


def verify(path: Path) -> dict[str, Any]:
    """Checks every byte of a checkpoint against its manifest; returns the content of state.json.

    Raises:
        CheckpointError: one sentence naming the file that is missing, strange or damaged.
    """
    hashes = _read_manifest(path)
    found = {entry.name for entry in path.iterdir()}
    for name in sorted({*hashes, MANIFEST} - found):
        raise CheckpointError(f"{path / name} is missing")
    for name in sorted(found - {*hashes, MANIFEST}):
        raise CheckpointError(f"{path / name} is not in the manifest; a checkpoint holds no others")
    for name, (size, digest) in hashes.items():
        file = path / name
        if file.is_symlink() or not file.is_file():
            raise CheckpointError(f"{file} is not a plain file")
        if file.stat().st_size != size:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes, {size} were written")
        if _digest(file) != digest:
            raise CheckpointError(f"{file} is damaged: its SHA-256 is not the manifest's")
    return facts(path)


def read(path: Path, checked: bool = False) -> TrainState:
    """A checkpoint in memory.

    Args:
        checked: whether :func:`verify` has been called already.

    Raises:
        CheckpointError: as :func:`verify`.
    """
    found = facts(path) if checked else verify(path)
    tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            tensors[file.stem] = load_file(file)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is not a safetensors file ({error})") from error
    return TrainState(tensors=tensors, **found)


def facts(path: Path) -> dict[str, Any]:
    """The content of a verified checkpoint's state.json: everything but the tensors.

    Raises:
        CheckpointError: it is not what :func:`save` writes.
    """
    file = path / STATE
    if file.stat().st_size > STATE_LIMIT:
        raise CheckpointError(f"{file} is larger than {STATE_LIMIT} bytes")
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    kinds = {"step": int, "part": int, "config": dict, "progress": dict, "versions": dict}
    if not isinstance(values, dict) or set(values) != set(kinds):
        raise CheckpointError(f"{file}: expected an object with the keys {', '.join(kinds)}")
    for name, kind in kinds.items():
        if type(values[name]) is not kind:
            raise CheckpointError(f"{file}.{name} is {values[name]!r}, expected {kind.__name__}")
    return values


def _number(path: Path) -> int:
    """A later save has a larger one, whatever its step."""
    return int(path.name.split("-")[1])


def _unfinished(path: Path) -> bool:
    return path.name.startswith(".save-")


def _prune(directory: Path, kept: list[Path], keep: int) -> None:
    for path in directory.iterdir():
        if _unfinished(path):
            shutil.rmtree(path, ignore_errors=True)
    for path in kept[: -max(1, keep)]:
        # Under this name it is no checkpoint, so a kill half-way through leaves no damaged one.
        doomed = path.with_name(f".{path.name}.old")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file; only one tensor at a time is copied from its device."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in sorted(tensors.items()):
        if tensor.dtype not in DTYPES:
            raise CheckpointError(f"tensor {name!r} is {tensor.dtype}, which is not stored")
        end = offset + tensor.numel() * tensor.element_size()
        span = {"shape": list(tensor.shape), "data_offsets": [offset, end]}
        header[name] = {"dtype": DTYPES[tensor.dtype], **span}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for _, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        yield flat.numpy().data


def _write(path: Path, blocks: Iterator[bytes | memoryview]) -> tuple[int, str]:
    """Writes a file; returns its length and SHA-256, of what was meant and not of what was read."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for block in blocks:
            digest.update(block)
            size += len(block)
            _put(file, block)
    return size, digest.hexdigest()


def _put(file: BinaryIO, block: bytes | memoryview) -> None:
    file.write(block)


def _manifest(hashes: Mapping[str, tuple[int, str]]) -> bytes:
    """The one spelling of a manifest: sorted, with the SHA-256 of itself without that line."""
    files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in hashes.items()}
    body = {"format": FORMAT, "files": files}
    own = hashlib.sha256(json.dumps(body, indent=2, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**body, "sha256": own}, indent=2, sort_keys=True) + "\n").encode()


def _read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    file = path / MANIFEST
    if not path.is_dir() or not file.is_file():
        raise CheckpointError(f"{path} is not a checkpoint: it has no {MANIFEST}")
    if file.stat().st_size > MANIFEST_LIMIT:
        raise CheckpointError(f"{file} is larger than {MANIFEST_LIMIT} bytes")
    content = file.read_bytes()
    try:
        values = json.loads(content)
        hashes = {
            str(name): (int(one["bytes"]), str(one["sha256"]))
            for name, one in values["files"].items()
        }
        written = values["format"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: it is not a manifest ({error!r})") from error
    # Equality of bytes: a flip that JSON would read over, in a space or a letter's case, counts.
    if written == FORMAT and content != _manifest(hashes):
        raise CheckpointError(f"{file} is damaged: its SHA-256 is not its own")
    if written != FORMAT:
        raise CheckpointError(f"{file}: format {written!r}, this version reads {FORMAT}")
    for name in hashes:
        if name != STATE and not TENSOR_FILE.fullmatch(name):
            raise CheckpointError(f"{file} names {name!r}, which no checkpoint holds")
    if STATE not in hashes:
        raise CheckpointError(f"{file} names no {STATE}")
    return hashes


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def difference(there: Any, here: Any, at: str) -> str:
    """Where two plain JSON values first differ, in words; "" if they do not."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            where = f"{at}.{key}" if at else str(key)
            found = difference(there.get(key), here.get(key), where)
            if found:
                return found
        return ""
    return "" if there == here else f"{at} was {there!r} and is {here!r} now"
