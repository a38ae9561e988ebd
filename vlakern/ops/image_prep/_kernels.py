"""The backends of ``image_prep`` under one signature; each function here makes one kernel.

A kernel binds images ``[V, H, W, 3]`` of one size, their output and the settings to a call without
arguments, which may be made again and again on the same memory.
"""

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from vlakern import env
from vlakern.ops import _native
from vlakern.ops.image_prep._check import Settings
from vlakern.ops.image_prep.reference import (
    Box,
    axes,
    image_prep_reference,
    normalisation,
    place,
    rows_of_patches,
)

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
            (max(s.pad[0], 0), max(s.pad[1], 0), max(s.pad[2], 0)),
            s.patch,
            _native.view(out),
            isa,
            threads,
        )
        workspace = torch.empty(prep.workspace_bytes, dtype=torch.uint8)
        prep.use(_native.view(workspace))
        border = _border(out, box, s) if min(s.pad) < 0 else None
        return partial(_run, prep, workspace, border)

    return bind


def _run(prep: Callable[[], None], workspace: Tensor, border: Callable[[], object] | None) -> None:
    """``workspace`` is only kept alive."""
    prep()
    if border is not None:
        border()


def _border(out: Tensor, box: Box, s: Settings) -> Callable[[], object]:
    """Fills what is not image: the kernel takes a border's level as a byte, none is below 0."""
    at, values = _border_values(box, s, out.dtype)
    return partial(out.flatten(1).index_copy_, 1, at, values.expand(len(out), -1))


@lru_cache(maxsize=64)
def _border_values(box: Box, s: Settings, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Where the border lies in a view's memory, and what is there."""
    norm = normalisation(s.mean, s.std)
    level, mean, std = torch.tensor([s.pad, norm.mean, norm.std])[:, None, :, None, None]
    around = torch.ones(1, 3, *s.size, dtype=torch.bool)
    around[..., box.top : box.top + box.height, box.left : box.left + box.width] = False
    pixels = ((level / norm.divisor - mean) / std).expand(1, 3, *s.size)
    if s.patch:
        around, pixels = rows_of_patches(around, s.patch), rows_of_patches(pixels, s.patch)
    at = around.flatten().nonzero()[:, 0]
    return at, pixels.flatten()[at].to(dtype)


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
