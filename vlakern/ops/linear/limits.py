"""What this machine can do at most, measured in the run that is compared with it."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from vlakern import env
from vlakern.ops import _native

__all__ = ["ColdMemory", "cold_copy", "peak_rate"]

ROOM = 192 << 20  # bytes that no cache holds
LINE = 64  # bytes


def peak_rate(kind: str, passes: int = 20) -> float:
    """Operations per second of the instruction for weights of ``kind``, best of ``passes``.

    In registers alone, a multiplication and an addition counting as two; 0 if it is not known. Each
    pass takes about a millisecond, on as many threads as torch uses.
    """
    native, threads = _native.cpu_module(), torch.get_num_threads()
    return max(native.peak_rate(kind, env.cpu_isa(), threads) for _ in range(passes))


def cold_copy(data: Tensor) -> Tensor:
    """A copy on large pages, as ``pack_linear`` makes them."""
    copied = torch.empty_like(data)
    _native.cpu_module().prefer_huge_pages(copied.data_ptr(), copied.nbytes)
    return copied.copy_(data)


class ColdMemory:
    """Memory of which every reading takes the next part, so that it comes from no cache."""

    def __init__(self, size: int = ROOM) -> None:
        self.data = cold_copy(torch.ones(size, dtype=torch.uint8))
        self.position = 0

    def read(self, size: int) -> float:
        """Reads ``size`` bytes on as many threads as torch uses; returns bytes per second."""
        return self._move(_native.cpu_module().read_rate, size)

    def write(self, size: int) -> float:
        """The same for writing."""
        return self._move(_native.cpu_module().write_rate, size)

    def _move(self, rate: Callable[[int, int, int], float], size: int) -> float:
        size = min(size, self.data.nbytes)
        if self.position + size > self.data.nbytes:
            self.position = 0
        address = self.data.data_ptr() + self.position
        self.position += -(-size // LINE) * LINE
        begin = time.perf_counter()
        rate(address, size, torch.get_num_threads())
        return size / (time.perf_counter() - begin)
