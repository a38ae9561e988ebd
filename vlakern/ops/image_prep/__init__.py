"""Camera images to a vision tower's input: resize, pad, normalise and patchify in one pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.ops._dispatch import Backend, made_by, resolve
from vlakern.ops._refusals import any_of, needs_cpu, needs_triton, never, only_dtypes
from vlakern.ops._torch import key_for
from vlakern.ops.image_prep._check import Settings, check, check_out, out_shape
from vlakern.ops.image_prep.reference import FILTERS, FITS

__all__ = ["BACKENDS", "FILTERS", "FITS", "BoundPrep", "image_prep", "image_prep_out"]

KERNELS = "vlakern.ops.image_prep._kernels"
FLOATS = only_dtypes("float32", "bfloat16", "float16")
BACKENDS = (
    Backend("triton", made_by(KERNELS, "triton"), any_of(needs_triton, FLOATS)),
    Backend("cpu", made_by(KERNELS, "cpu"), any_of(needs_cpu, FLOATS)),
    Backend("reference", made_by(KERNELS, "reference"), never),
)

Image: TypeAlias = Tensor | np.ndarray
Images: TypeAlias = Image | Sequence[Image]


@dataclass(frozen=True)
class BoundPrep:
    """A checked and resolved ``image_prep_out`` on fixed memory; calling it prepares again."""

    images: tuple[Tensor, ...]  # kept alive, since native kernels hold only their addresses
    out: Tensor
    runs: tuple[Callable[[], None], ...]

    def __call__(self) -> None:
        for run in self.runs:
            run()


def image_prep(
    images: Images,
    *,
    size: int | tuple[int, int],
    fit: str = "letterbox",
    filter: str = "bilinear_antialias",
    pad: int | Sequence[int] = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    patch: int = 0,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Tensor:
    """Images as a vision tower takes them; ``reference.py`` is the definition.

    Letters: V views, H and W of an image, S and T height and width of the output, P side of a
    patch. It has no gradient: images are whole numbers.

    Args:
        images: uint8 ``[H, W, 3]`` or ``[V, H, W, 3]``, or a sequence of these, which may differ in
            size; of any strides. NumPy arrays with negative strides are copied.
        size: S = T, or (S, T) [px].
        fit: ``letterbox`` keeps the aspect ratio and centres, ``openpi`` is its resize_with_pad
            (sizes truncated), ``lerobot`` pads above and to the left, ``stretch`` fills the output,
            ``cover`` does so with the aspect ratio kept and what does not fit cut off.
        filter: ``bilinear_antialias`` or ``bicubic_antialias``, both equal to Pillow's resize, or
            ``bilinear``: torch's interpolate without antialiasing, not rounded to whole levels.
        pad: level 0 to 255 of the border, or one per channel; with ``bilinear`` from -255 on,
            since LeRobot's pi0 pads images in [0, 1] with -1.
        mean, std: per channel, of values in [0, 1]: (level / 255 - mean) / std. Without them
            level / 127.5 - 1, which is [-1, 1].
        patch: P for rows of patches, 0 for planes.
        dtype: of the result: fp32, bf16, fp16 (fp64: reference only).
        backend: ``auto`` or the name of one.

    Returns:
        ``[V, 3, S, T]``, or ``[V, S/P·T/P, 3·P·P]``: patches row by row, each in the order of a
        patch embedding's convolution weight (channel, row, column). An image that has the output's
        size is not resized, and every backend gives the same bits for antialiasing filters.

    Raises:
        InputError: an argument does not fit.
        Unsupported: the named backend refuses the case.
    """
    s = _settings(size, fit, filter, pad, mean, std, patch)
    groups = _groups(images)
    return _image_prep(
        groups, [*s.size], fit, filter, [*s.pad], [*s.mean], [*s.std], patch, dtype, backend
    )


def image_prep_out(
    images: Images,
    *,
    size: int | tuple[int, int],
    out: Tensor,
    fit: str = "letterbox",
    filter: str = "bilinear_antialias",
    pad: int | Sequence[int] = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    patch: int = 0,
    backend: str = "auto",
) -> BoundPrep:
    """``image_prep`` into ``out``, without torch.library's overhead.

    Returns the preparation that was done: who writes the next pictures into the memory of
    ``images`` calls it again, without checks and allocations. ``out`` is contiguous within a view;
    its dtype is the result's. Images that the border has to copy (NumPy arrays with negative
    strides or without permission to write) are refused, since the call would not see new pictures.
    """
    groups = _groups(images, copies=False)
    s = _settings(size, fit, filter, pad, mean, std, patch)
    bound = _bind(groups, out, s, backend)
    bound()
    return bound


@torch.library.custom_op("vlakern::image_prep", mutates_args=())
def _image_prep(
    images: list[Tensor],
    size: list[int],
    fit: str,
    filter: str,
    pad: list[int],
    mean: list[float],
    std: list[float],
    patch: int,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    s = _settings((size[0], size[1]), fit, filter, pad, mean, std, patch)
    check(images, s, dtype)
    out = _empty(images, s, dtype)
    _bind(images, out, s, backend)()
    return out


@_image_prep.register_fake
def _(images, size, fit, filter, pad, mean, std, patch, dtype, backend):
    s = _settings((size[0], size[1]), fit, filter, pad, mean, std, patch)
    check(images, s, dtype)
    return _empty(images, s, dtype)


def _bind(images: Sequence[Tensor], out: Tensor, s: Settings, backend: str) -> BoundPrep:
    check(images, s, out.dtype)
    check_out(out, images, s)
    kernel = resolve("image_prep", key_for(out.device, (out.dtype,)), backend)
    runs, first = [], 0
    for group in images:
        if len(group):
            runs.append(kernel(group, out[first : first + len(group)], s))
        first += len(group)
    return BoundPrep(tuple(images), out, tuple(runs))


def _empty(images: Sequence[Tensor], s: Settings, dtype: torch.dtype) -> Tensor:
    views = sum(image.shape[0] for image in images)
    return torch.empty(out_shape(views, s), dtype=dtype, device=images[0].device)


def _settings(
    size: int | tuple[int, int],
    fit: str,
    filter: str,
    pad: int | Sequence[int],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    patch: int,
) -> Settings:
    sides = (size, size) if isinstance(size, int) else (size[0], size[1])
    levels = (pad,) * 3 if isinstance(pad, int) else tuple(pad)
    return Settings(sides, fit, filter, levels, tuple(mean or ()), tuple(std or ()), patch)


def _groups(images: Images, copies: bool = True) -> list[Tensor]:
    """Every entry as ``[V, H, W, 3]``."""
    entries = [images] if isinstance(images, (Tensor, np.ndarray)) else list(images)
    tensors = [_tensor(entry, copies) for entry in entries]
    return [one[None] if one.ndim == 3 else one for one in tensors]


def _tensor(image: Image, copies: bool) -> Tensor:
    if isinstance(image, Tensor):
        return image
    # torch takes neither memory that runs backwards nor, without a warning, memory that is locked.
    if min(image.strides, default=0) < 0 or not image.flags.writeable:
        if not copies:
            raise InputError(
                "image_prep: images to be bound must be writeable and without negative strides;"
                " give a contiguous copy that the camera writes to"
            )
        image = image.copy()
    return torch.from_numpy(image)
