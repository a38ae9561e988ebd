"""The backends of ``action_decode`` under one signature; each function here makes one kernel.

A kernel binds tensors and frame to a call without arguments, which may be made again and again on
the same memory.
"""

from collections.abc import Callable
from functools import partial

from vlakern.ops import _native
from vlakern.ops.action_decode._check import Tensors
from vlakern.ops.action_decode.reference import action_decode_reference

__all__ = ["cpu", "reference"]

Kernel = Callable[[Tensors, str], Callable[[], None]]


def cpu() -> Kernel:
    """The native CPU kernel, on the calling thread."""
    native = _native.cpu_module()

    def bind(t: Tensors, frame: str) -> Callable[[], None]:
        return native.ActionDecode(*map(_native.view, t), frame)

    return bind


def reference() -> Kernel:
    """The definition."""
    return partial(partial, _reference)


def _reference(t: Tensors, frame: str) -> None:
    t.out.copy_(action_decode_reference(*t[:-1], frame, t.out.shape[2]))
