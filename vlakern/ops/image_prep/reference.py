"""Definition of ``image_prep``: camera images to normalised pixels or patch rows.

Resizing with antialiasing is Pillow's, bit by bit: each output is a weighted sum of the inputs
under a filter as wide as the output's footprint (but at least as wide as the filter itself),

    c = (i + 1/2)·n_in/n_out,  w_j ∝ f((j + 1/2 - c) / max(1, n_in/n_out)),  Σ w = 1,

along rows first, then along columns, with weights rounded to multiples of 2^-22 and every pass
rounded to a level of 0 to 255. (Pillow 13 goes along columns first where the height shrinks much
more than the width, which a fit that keeps the aspect ratio never does.) f is the triangle
``1 - |x|`` or the cubic convolution with a = -1/2 (Keys 1981). ``bilinear`` is the two-point rule
without antialiasing, in floating point, as torch's
``interpolate(mode="bilinear", align_corners=False)``.

Letters: V views, H and W of an image, S and T sides of the output, P side of a patch, N outputs and
K inputs per output along one axis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "BITS",
    "FILTERS",
    "FITS",
    "Box",
    "Taps",
    "axes",
    "image_prep_reference",
    "normalisation",
    "place",
    "rows_of_patches",
    "taps",
]

BITS = 22  # of a fixed-point weight's fraction
# Half the width of the filter [inputs], at scale 1; 0 stands for no antialiasing.
FILTERS = {"bilinear_antialias": 1.0, "bicubic_antialias": 2.0, "bilinear": 0.0}


@dataclass(frozen=True)
class Fit:
    """How an image goes into the output: ``rounds`` its size or truncates it, and where it lies."""

    stretches: bool = False
    covers: bool = False
    rounds: bool = True
    centred: bool = True


FITS = {
    "stretch": Fit(stretches=True),  # both sides to the output's, whatever the aspect ratio
    # Aspect ratio kept, the middle alone is seen: torchvision's Resize and CenterCrop.
    "cover": Fit(covers=True),
    "letterbox": Fit(),  # aspect ratio kept, centred, sides rounded to the nearest
    "openpi": Fit(rounds=False),  # resize_with_pad of openpi: sides truncated, centred
    "lerobot": Fit(rounds=False, centred=False),  # LeRobot's: all padding above and to the left
}


class Box(NamedTuple):
    """Where the resized image lies in the output [px].

    ``resized`` is its whole size where a part of it is cut out, from the pixel ``cut`` on.
    """

    top: int
    left: int
    height: int
    width: int
    cut: tuple[int, int] = (0, 0)
    resized: tuple[int, int] | None = None


class Taps(NamedTuple):
    """The inputs of every output along one axis; ``weights`` are 0 past the last that counts."""

    first: Tensor  # [N] int32
    weights: Tensor  # [N, K] int32, in units of 2^-BITS, or floating point


class Normalisation(NamedTuple):
    """``(level / divisor - mean) / std``."""

    divisor: float
    mean: tuple[float, ...]  # per channel
    std: tuple[float, ...]


def image_prep_reference(
    images: Tensor,
    size: tuple[int, int],
    fit: str = "letterbox",
    filter: str = "bilinear_antialias",
    pad: Sequence[int] = (0, 0, 0),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    patch: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """uint8 ``[V, H, W, 3]`` to ``[V, 3, S, T]``, or ``[V, S/P·T/P, 3·P·P]`` with patches."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    box = place(images.shape[1:3], size, fit)
    y, x = axes(filter, images.shape[1:3], box, pad, compute)
    levels = _resize(_resize(images, 2, x), 1, y)
    full = torch.tensor(pad, dtype=compute, device=images.device).repeat(len(images), *size, 1)
    down, right = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    full[:, down, right] = levels.to(compute)
    norm = normalisation(mean, std)
    shift, scale = (torch.tensor(v, dtype=compute, device=images.device) for v in norm[1:])
    pixels = ((full / norm.divisor - shift) / scale).permute(0, 3, 1, 2)
    return (rows_of_patches(pixels, patch) if patch else pixels).to(dtype).contiguous()


def rows_of_patches(pixels_V3ST: Tensor, patch: int) -> Tensor:
    """``[V, 3, S, T]`` to ``[V, S/P·T/P, 3·P·P]``, a patch ordered as a convolution's weight."""
    views, channels, height, width = pixels_V3ST.shape
    split = pixels_V3ST.reshape(views, channels, height // patch, patch, width // patch, patch)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(views, -1, channels * patch * patch)


def normalisation(mean: Sequence[float], std: Sequence[float]) -> Normalisation:
    """From mean and std of values in [0, 1]; without them values go to [-1, 1]."""
    if not mean:
        return Normalisation(127.5, (1.0,) * 3, (1.0,) * 3)
    return Normalisation(255.0, tuple(mean), tuple(std))


def place(image: Sequence[int], size: tuple[int, int], fit: str) -> Box:
    """Where an image of (height, width) goes in an output of ``size``, with at least a pixel."""
    rule = FITS[fit]
    if rule.stretches:
        return Box(0, 0, *size)
    if rule.covers:
        return _cover(image, size)
    ratio = max(side / room for side, room in zip(image, size, strict=True))
    whole = round if rule.rounds else int
    sides = [min(room, max(1, whole(side / ratio))) for side, room in zip(image, size, strict=True)]
    gaps = [room - side for room, side in zip(size, sides, strict=True)]
    top, left = (gap // 2 if rule.centred else gap for gap in gaps)
    return Box(top, left, sides[0], sides[1])


@lru_cache(maxsize=256)
def taps(filter: str, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> Taps:
    """The weights of one axis; ``dtype`` is that of ``bilinear``'s, the others are fixed-point."""
    if inputs == outputs:
        one = torch.ones(outputs, 1, dtype=dtype)
        whole = torch.full((outputs, 1), 1 << BITS, dtype=torch.int32)
        return Taps(
            torch.arange(outputs, dtype=torch.int32), one if filter == "bilinear" else whole
        )
    first, weights = (
        _two_points(inputs, outputs)
        if filter == "bilinear"
        else _antialias(FILTERS[filter], inputs, outputs)
    )
    first_N = torch.from_numpy(first.astype(np.int32))
    if filter == "bilinear":
        return Taps(first_N, torch.from_numpy(weights).to(dtype))
    fixed = np.trunc(weights * (1 << BITS) + np.where(weights < 0, -0.5, 0.5))
    return Taps(first_N, torch.from_numpy(fixed.astype(np.int32)))


def _cover(image: Sequence[int], size: tuple[int, int]) -> Box:
    height, width = image
    if height * size[1] <= width * size[0]:
        resized = size[0], max(size[1], int(size[0] * width / height))
    else:
        resized = max(size[0], int(size[1] * height / width)), size[1]
    cut = tuple(round((side - room) / 2) for side, room in zip(resized, size, strict=True))
    return Box(0, 0, *size, (cut[0], cut[1]), resized)


def axes(
    filter: str,
    image: Sequence[int],
    box: Box,
    pad: Sequence[int] = (0, 0, 0),
    dtype: torch.dtype = torch.float32,
) -> tuple[Taps, Taps]:
    """The weights of both axes, y first; an image of the right size keeps its whole levels.

    Not with a ``pad`` below 0, which is no level.
    """
    sides = box.resized or (box.height, box.width)
    if tuple(image) == sides and min(pad) >= 0:
        filter = "bilinear_antialias"
    y, x = (
        Taps(*(table[cut : cut + room] for table in taps(filter, inputs, outputs, dtype)))
        for inputs, outputs, cut, room in zip(image, sides, box.cut, box[2:4], strict=True)
    )
    return y, x


def _two_points(inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    at = np.maximum((np.arange(outputs) + 0.5) * (inputs / outputs) - 0.5, 0.0)
    # The last point has no right neighbour: it is the right one of the pair before it.
    first = np.minimum(np.floor(at), max(inputs - 2, 0))
    right = np.minimum(at - first, 1.0)
    if inputs == 1:
        return first, np.ones((outputs, 1))
    return first, np.stack((1.0 - right, right), 1)


def _antialias(half: float, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    scale = inputs / outputs
    wide = max(scale, 1.0)
    support = half * wide
    centre = (np.arange(outputs) + 0.5) * scale
    first = np.maximum(np.trunc(centre - support + 0.5), 0.0)
    end = np.minimum(np.trunc(centre + support + 0.5), float(inputs))
    shape = _triangle if half == 1.0 else _cubic
    j = np.arange(int((end - first).max()))
    weights = shape((j + first[:, None] - centre[:, None] + 0.5) * (1.0 / wide))
    weights[j >= (end - first)[:, None]] = 0.0
    # Summed from the left, one by one: Pillow's weights to the last bit.
    total = np.zeros(outputs)
    for column in weights.T:
        total += column
    return first, weights / total[:, None]


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _cubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _resize(images: Tensor, axis: int, table: Taps) -> Tensor:
    """One pass along one axis; levels stay whole, and int32, unless weights are not."""
    inputs, outputs = images.shape[axis], len(table.first)
    first, weights = (t.to(images.device) for t in table)
    whole = weights.dtype == torch.int32
    bent = [1] * images.ndim
    bent[axis] = outputs
    start = 1 << (BITS - 1) if whole else 0
    total = torch.full_like(images.narrow(axis, 0, 1), start, dtype=weights.dtype)
    for k in range(weights.shape[1]):
        at = (first + k).clamp(max=inputs - 1)
        total = total + images.index_select(axis, at).to(weights.dtype) * weights[:, k].reshape(
            bent
        )
    return (total >> BITS).clamp(0, 255) if whole else total
