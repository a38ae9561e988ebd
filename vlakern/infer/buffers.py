"""Every buffer that the CPU engine works in, allocated once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.ops import _native

__all__ = ["Buffers", "Limits", "allocate"]

LINE = 64  # bytes of a cache line


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
            if value < 1:
                raise InputError(f"an engine for {value} {name}; expected at least 1")


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


def allocate(
    arena_bytes: int, kv_shape: tuple[int, ...], dtype: torch.dtype, x_shape: tuple[int, ...]
) -> Buffers:
    """All buffers, their contents undefined.

    Raises:
        InputError: the memory is not there; says how much is needed and for what.
    """
    kv_bytes = torch.empty(0, dtype=dtype).element_size()
    for size in kv_shape:
        kv_bytes *= size
    try:
        space = torch.empty(arena_bytes + LINE, dtype=torch.uint8)
        kv = torch.empty(kv_shape, dtype=dtype)
        x = torch.empty(x_shape)
    except RuntimeError as error:
        raise InputError(
            f"the engine needs {arena_bytes / 1e6:.0f} MB for what its stages pass on and"
            f" {kv_bytes / 1e6:.0f} MB for the keys and values of {kv_shape[2]} prefix tokens, and"
            " they are not free; build it for fewer observations, rows or tokens"
        ) from error
    _native.cpu_module().prefer_huge_pages(space.data_ptr(), space.nbytes)
    arena = space[-space.data_ptr() % LINE :][:arena_bytes]
    return Buffers(arena, kv, x)
