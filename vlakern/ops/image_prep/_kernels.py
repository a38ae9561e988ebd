"""The backends of ``image_prep`` under one signature; each function here makes one kernel.

A kernel binds images ``[V, H, W, 3]`` of one size, their output and the settings to a call without
arguments, which may be made again and again on the same memory.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vlakern import env
from vlakern.ops import _native
from vlakern.ops.image_prep._check import Settings
from vlakern.ops.image_prep.reference import axes, image_prep_reference, normalisation, place

__all__ = ["cpu", "reference", "triton"]

Kernel = Callable[[Tensor, Tensor, Settings], Callable[[], None]]


def cpu() -> Kernel:
    """The native CPU kernel, on as many threads as torch uses."""
    native, isa = _native.cpu_module(), env.cpu_isa()
    native.selected_isa(isa)  # raises Unsupported here and not in the first call

    def bind(images: Tensor, out: Tensor, s: Settings) -> Callable[[], None]:
        threads = torch.get_num_threads()
        box = place(images.shape[1:3], s.size, s.fit)
        both = axes(s.filter, images.shape[1:3], box)
        tables = [_native.view(tensor) for axis in both for tensor in axis]
        norm = normalisation(s.mean, s.std)
        prep = native.ImagePrep(
            _native.view(images),
            *tables,
            (box.top, box.left, *s.size),
            (norm.divisor, *norm.mean, *norm.std),
            (s.pad[0], s.pad[1], s.pad[2]),
            s.patch,
            _native.view(out),
            isa,
            threads,
        )
        workspace = torch.empty(prep.workspace_bytes, dtype=torch.uint8)
        prep.use(_native.view(workspace))
        return partial(_run, prep, workspace)

    return bind


def _run(prep: Callable[[], None], workspace: Tensor) -> None:
    """``workspace`` is only kept alive."""
    prep()


def triton() -> Kernel:
    """The Triton kernel."""
    from vlakern.ops.image_prep.triton_kernels import bind

    return bind


def reference() -> Kernel:
    """The definition."""
    return partial(partial, _reference)


def _reference(images: Tensor, out: Tensor, s: Settings) -> None:
    arguments = (s.size, s.fit, s.filter, s.pad, s.mean, s.std, s.patch)
    out.copy_(image_prep_reference(images, *arguments, out.dtype))
