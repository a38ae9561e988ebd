"""The arguments of one ``action_decode`` call, and the one check of them, at the border."""

from typing import NamedTuple

import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.ops.action_decode.reference import FRAMES, KIND_WIDTHS, KINDS, compute_dtype

__all__ = ["Tensors", "check"]

CHUNKS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Tensors(NamedTuple):
    """What every backend takes. Letters: B rows, H positions, A slots, C copies, P poses."""

    x: Tensor  # [B, H, A]
    scale: Tensor  # [A]
    offset: Tensor  # [A]
    base: Tensor  # [B, P, 7]
    copies: Tensor  # [C, 3]
    affine: Tensor  # [C, 2]
    poses: Tensor  # [P, 6]
    out: Tensor  # [B, H, N]


def check(t: Tensors, frame: str) -> None:
    """Raises InputError for the first argument, or entry of a table, that does not fit."""
    if frame not in FRAMES:
        _fail("frame", f"one of {', '.join(FRAMES)}", repr(frame))
    if t.x.ndim != 3:
        _fail("x", "[B, H, A]", list(t.x.shape))
    rows, positions, slots = t.x.shape
    compute = compute_dtype(t.x)
    _dtype("x", t.x, *CHUNKS)
    _table("copies", t.copies, "C", 3)
    _table("poses", t.poses, "P", 6)
    floats = {
        "scale": (t.scale, "A", (slots,)),
        "offset": (t.offset, "A", (slots,)),
        "base": (t.base, "B, P, 7", (rows, len(t.poses), 7)),
        "affine": (t.affine, "C, 2", (len(t.copies), 2)),
        "out": (t.out, "B, H, N", (rows, positions, t.out.shape[-1] if t.out.ndim else 0)),
    }
    for name, (tensor, letters, shape) in floats.items():
        _dtype(name, tensor, compute)
        if tuple(tensor.shape) != shape:
            _fail(name, f"[{letters}] = {list(shape)}", list(tensor.shape))
        if tensor.device != t.x.device:
            _fail(name, f"on x's device {t.x.device}", f"one on {tensor.device}")
    for name, table in (("copies", t.copies), ("poses", t.poses)):
        if table.device not in (t.x.device, torch.device("cpu")):
            _fail(name, f"on the CPU or on {t.x.device}", f"one on {table.device}")
    _check_tables(t.copies.tolist(), t.poses.tolist(), slots, t.out.shape[2], frame)


def _check_tables(
    copies: list[list[int]], poses: list[list[int]], slots: int, width: int, frame: str
) -> None:
    writers: dict[int, str] = {}
    for i, (slot, column, binary) in enumerate(copies):
        _reads(f"copy {i}", slot, 1, slots)
        _writes(f"copy {i}", column, 1, width, writers)
        if binary not in (0, 1):
            _fail(f"copy {i}", "binary 0 or 1", binary)
    for i, (slot, turn, kind, column, turn_column, kind_out) in enumerate(poses):
        _reads(f"pose {i}", slot, 3, slots)
        _writes(f"pose {i}", column, 3, width, writers)
        if (turn == -1) != (turn_column == -1):
            found = f"rotation slot {turn} and column {turn_column}"
            _fail(f"pose {i}", "given rotation in both slots and columns or in neither", found)
        if turn == -1:
            if frame.startswith("eef"):
                _fail(f"pose {i}", f"given a rotation, which {frame} needs", "-1")
            continue
        _reads(f"pose {i}", turn, _width_of(f"pose {i}", kind), slots)
        _writes(f"pose {i}", turn_column, _width_of(f"pose {i}", kind_out), width, writers)
    missing = [column for column in range(width) if column not in writers]
    if missing:
        raise InputError(
            f"action_decode: column {missing[0]} of {width} is written by no copy and no pose"
        )


def _fail(name: str, expected: str, found: object) -> None:
    raise InputError(f"action_decode: {name} must be {expected}, got {found}")


def _dtype(name: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    if tensor.dtype not in allowed:
        _fail(name, " or ".join(str(one) for one in allowed), tensor.dtype)


def _table(name: str, table: Tensor, letter: str, columns: int) -> None:
    _dtype(name, table, torch.int32)
    if table.ndim != 2 or table.shape[1] != columns:
        _fail(name, f"[{letter}, {columns}]", list(table.shape))


def _width_of(name: str, kind: int) -> int:
    if not 0 <= kind < len(KINDS):
        _fail(name, f"of rotation kind 0 to {len(KINDS) - 1}", kind)
    return KIND_WIDTHS[kind]


def _reads(name: str, first: int, count: int, slots: int) -> None:
    if first < 0 or first + count > slots:
        found = f"slots {first} to {first + count - 1}"
        raise InputError(f"action_decode: {name} reads {found}, x has {slots}")


def _writes(name: str, first: int, count: int, width: int, writers: dict[int, str]) -> None:
    for column in range(first, first + count):
        if not 0 <= column < width:
            raise InputError(f"action_decode: {name} writes column {column}, out has {width}")
        if column in writers:
            raise InputError(
                f"action_decode: {name} writes column {column}, which {writers[column]} writes"
            )
        writers[column] = name
