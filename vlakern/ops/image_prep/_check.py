"""The arguments of one ``image_prep`` call, and the one check of them, at the border."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.ops.image_prep.reference import FILTERS, FITS

__all__ = ["Settings", "check", "check_out", "out_shape"]

PIXELS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Settings:
    """Everything about a call but its images and its output; see ``image_prep``."""

    size: tuple[int, int]  # height, width
    fit: str
    filter: str
    pad: tuple[int, ...]  # level per channel
    mean: tuple[float, ...]  # per channel, or empty for [-1, 1]
    std: tuple[float, ...]
    patch: int  # 0: planes


def check(images: Sequence[Tensor], settings: Settings, dtype: torch.dtype) -> None:
    """Raises InputError for the first argument that does not fit."""
    _check_settings(settings)
    if dtype not in PIXELS:
        _fail("dtype", " or ".join(map(str, PIXELS)), dtype)
    if not images:
        raise InputError("image_prep: found no images, expected at least one tensor of them")
    for i, image in enumerate(images):
        name = f"images[{i}]"
        if image.dtype != torch.uint8:
            _fail(name, "torch.uint8", image.dtype)
        if image.ndim != 4 or image.shape[3] != 3:
            _fail(name, "[V, H, W, 3]", list(image.shape))
        if 0 in image.shape[1:]:
            _fail(name, "[V, H, W, 3] with at least one pixel", list(image.shape))
        if image.device != images[0].device:
            _fail(name, f"on the first one's device {images[0].device}", image.device)


def _check_settings(s: Settings) -> None:
    if s.fit not in FITS:
        _fail("fit", f"one of {', '.join(FITS)}", repr(s.fit))
    if s.filter not in FILTERS:
        _fail("filter", f"one of {', '.join(FILTERS)}", repr(s.filter))
    if len(s.size) != 2 or min(s.size) < 1:
        _fail("size", "height and width of at least 1 [px]", s.size)
    least = -255 if s.filter == "bilinear" else 0
    if len(s.pad) != 3 or not all(least <= level <= 255 for level in s.pad):
        _fail("pad", f"a level of {least} to 255, or one per channel", s.pad)
    if (len(s.mean), len(s.std)) not in ((0, 0), (3, 3)):
        _fail("mean and std", "given together, one per channel", f"{s.mean} and {s.std}")
    if not all(value > 0.0 for value in s.std):
        _fail("std", "positive", s.std)
    if s.patch < 0 or (s.patch and any(side % s.patch for side in s.size)):
        _fail("patch", f"0 or a divisor of both sides of size {s.size}", s.patch)


def out_shape(views: int, s: Settings) -> tuple[int, ...]:
    """``[V, 3, S, T]`` or ``[V, patches, 3·P·P]``."""
    height, width = s.size
    if not s.patch:
        return (views, 3, height, width)
    return (views, (height // s.patch) * (width // s.patch), 3 * s.patch * s.patch)


def check_out(out: Tensor, images: Sequence[Tensor], s: Settings) -> None:
    """Raises InputError if ``out`` is not the place for these images."""
    shape = out_shape(sum(len(image) for image in images), s)
    if tuple(out.shape) != shape:
        _fail("out", list(shape), list(out.shape))
    if out.device != images[0].device:
        _fail("out", f"on images' device {images[0].device}", f"one on {out.device}")
    if len(out) and not out[0].is_contiguous():
        _fail("out", "contiguous within a view", f"strides {list(out.stride())}")


def _fail(name: str, expected: object, found: object) -> None:
    raise InputError(f"image_prep: {name} must be {expected}, got {found}")
