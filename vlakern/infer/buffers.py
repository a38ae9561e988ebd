"""Every buffer that the CPU engine works in, allocated once."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.ops import _native

__all__ = ["Buffers", "Limits", "arena", "room", "vacant"]

LINE = 64  # bytes of a cache line
MOST = 2**31 - 1  # rows are numbered in int32


@dataclass(frozen=True)
class Limits:
    """The most that one call brings.

    Attributes:
        observations: R, prefixes of one prefill.
        views: V, images of all of them.
        tokens: T, prefix tokens of all of them.
        rows: N, action chunks of one integration.
    """

    observations: int
    views: int
    tokens: int
    rows: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 1 <= value <= MOST:
                raise InputError(f"an engine for {value} {name}; expected 1 to {MOST}")


@dataclass(frozen=True)
class Buffers:
    """The memory of an engine.

    Attributes:
        arena: uint8, beginning on a cache line: what the stages pass on, see
            csrc/engine/engine_buffers.h.
        kv: keys and values of the prefixes, ``[layers, 2, T, G · D]``.
        x: ``[N, H, A]`` fp32, noise that becomes actions.
    """

    arena: Tensor
    kv: Tensor
    x: Tensor

    @property
    def nbytes(self) -> int:
        return self.arena.nbytes + self.kv.nbytes + self.x.nbytes


@contextmanager
def room(size: int, what: str) -> Iterator[None]:
    """Memory is asked for inside.

    Raises:
        InputError: it is not there; says how much is needed and for what.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        raise InputError(
            f"the engine needs {size / 1e6:.0f} MB for {what}, and they are not free; build it for"
            " fewer observations, rows or tokens"
        ) from error


def vacant(shape: tuple[int, ...], dtype: torch.dtype, what: str) -> Tensor:
    """A tensor, its content undefined.

    Raises:
        InputError: the memory is not there.
    """
    with room(math.prod(shape) * dtype.itemsize, what):
        return torch.empty(shape, dtype=dtype)


def arena(size: int) -> Tensor:
    """uint8 ``[size]`` that begins on a cache line, its content undefined.

    Raises:
        InputError: the memory is not there.
    """
    space = vacant((size + LINE,), torch.uint8, "what its stages pass on")
    _native.cpu_module().prefer_huge_pages(space.data_ptr(), space.nbytes)
    return space[-space.data_ptr() % LINE :][:size]
