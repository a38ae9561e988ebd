"""The allocator's settings of a process that receives images."""

import ctypes
import sys

__all__ = ["keep_memory"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = 64 << 20  # bytes


def keep_memory() -> bool:
    """Freed blocks stay with the process; whether its C library can.

    By default glibc gives a message's buffers back to the kernel and maps them anew for the next
    one, which takes half of the time that a request takes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT) and mallopt(M_MMAP_THRESHOLD, KEPT >> 1))
