"""``image_prep`` in Triton: one program per view and tile of its output pixels, which it gathers.

Both passes happen in registers: a row's sum along x is rounded to a level before it is weighted
along y, so the bits are those of two passes over memory.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlakern import env
from vlakern.ops.image_prep._check import Settings
from vlakern.ops.image_prep.reference import BITS, Box, Taps, axes, normalisation, place

__all__ = ["BLOCK", "OPTIONS", "bind", "image_prep_kernel"]

BLOCK = 128
# The kernel fuses where it says tl.fma, as the native kernels do; the compiler must not elsewhere.
OPTIONS: dict[str, Any] = {"BLOCK": BLOCK, "num_warps": 4, "enable_fp_fusion": False}
ROUND = tl.constexpr(1 << (BITS - 1))
SHIFT = tl.constexpr(BITS)


@triton.jit
def _clip(total):
    return tl.minimum(tl.maximum(total >> SHIFT, 0), 255)


@triton.jit
def _divide(value, divisor, reciprocal):
    """Correctly rounded, given the rounded reciprocal."""
    quotient = value * reciprocal
    return tl.fma(tl.fma(quotient, -divisor, value), reciprocal, quotient)


@triton.jit
def _normalise(value, norm_ptr, c):
    """``(value / divisor - mean) / std`` from divisor, mean, std, 1 / divisor, 1 / std."""
    zero = value * 0.0
    value = _divide(value, zero + tl.load(norm_ptr), zero + tl.load(norm_ptr + 7))
    value = value - tl.load(norm_ptr + 1 + c)
    return _divide(value, zero + tl.load(norm_ptr + 4 + c), zero + tl.load(norm_ptr + 8 + c))


@triton.jit
def image_prep_kernel(
    images_ptr,  # [V, H, W, 3] uint8
    y_first_ptr,  # [M]
    y_weights_ptr,  # [M, K]
    x_first_ptr,  # [N]
    x_weights_ptr,  # [N, L]
    values_ptr,  # [3, 256], what each level becomes, in out's dtype
    norm_ptr,  # [11] fp32, see _normalise
    out_ptr,  # [V, 3, S, T] or [V, S/P * T/P, 3PP]
    height,
    width,
    y_taps,
    x_taps,
    top,
    left,
    box_height,
    box_width,
    out_height,
    out_width,
    tiles,
    stride_v,
    stride_h,
    stride_w,
    stride_c,
    out_stride_v,
    pad0,
    pad1,
    pad2,
    WHOLE: tl.constexpr,
    PATCH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    v = (tl.program_id(0) // tiles).to(tl.int64)
    i = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    out_y = i // out_width
    out_x = i % out_width
    inside = out_y < out_height
    y = out_y - top
    x = out_x - left
    in_box = inside & (y >= 0) & (y < box_height) & (x >= 0) & (x < box_width)
    y = tl.where(in_box, y, 0)
    x = tl.where(in_box, x, 0)
    y_first = tl.load(y_first_ptr + y)
    x_first = tl.load(x_first_ptr + x)
    view_ptr = images_ptr + v * stride_v

    if WHOLE:
        red = tl.full((BLOCK,), ROUND, tl.int32)
        green = red
        blue = red
        for ky in range(y_taps):
            row = tl.minimum(y_first + ky, height - 1).to(tl.int64)
            row_ptr = view_ptr + row * stride_h
            red_row = tl.full((BLOCK,), ROUND, tl.int32)
            green_row = red_row
            blue_row = red_row
            for kx in range(x_taps):
                column = tl.minimum(x_first + kx, width - 1)
                at = row_ptr + column * stride_w
                weight = tl.load(x_weights_ptr + x * x_taps + kx)
                red_row += weight * tl.load(at, mask=in_box, other=0).to(tl.int32)
                green_row += weight * tl.load(at + stride_c, mask=in_box, other=0).to(tl.int32)
                blue_row += weight * tl.load(at + 2 * stride_c, mask=in_box, other=0).to(tl.int32)
            weight = tl.load(y_weights_ptr + y * y_taps + ky)
            red += weight * _clip(red_row)
            green += weight * _clip(green_row)
            blue += weight * _clip(blue_row)
        red = tl.load(values_ptr + tl.where(in_box, _clip(red), pad0))
        green = tl.load(values_ptr + 256 + tl.where(in_box, _clip(green), pad1))
        blue = tl.load(values_ptr + 512 + tl.where(in_box, _clip(blue), pad2))
    else:
        red = tl.zeros((BLOCK,), tl.float32)
        green = red
        blue = red
        for kx in range(x_taps):
            at = view_ptr + (x_first + kx) * stride_w
            red_row = tl.zeros((BLOCK,), tl.float32)
            green_row = red_row
            blue_row = red_row
            for ky in range(y_taps):
                pixel = at + (y_first + ky).to(tl.int64) * stride_h
                weight = tl.load(y_weights_ptr + y * y_taps + ky)
                level = tl.load(pixel, mask=in_box, other=0).to(tl.float32)
                red_row = tl.fma(weight, level, red_row)
                level = tl.load(pixel + stride_c, mask=in_box, other=0).to(tl.float32)
                green_row = tl.fma(weight, level, green_row)
                level = tl.load(pixel + 2 * stride_c, mask=in_box, other=0).to(tl.float32)
                blue_row = tl.fma(weight, level, blue_row)
            weight = tl.load(x_weights_ptr + x * x_taps + kx)
            red = tl.fma(weight, red_row, red)
            green = tl.fma(weight, green_row, green)
            blue = tl.fma(weight, blue_row, blue)
        red = _normalise(tl.where(in_box, red, pad0), norm_ptr, 0)
        green = _normalise(tl.where(in_box, green, pad1), norm_ptr, 1)
        blue = _normalise(tl.where(in_box, blue, pad2), norm_ptr, 2)

    to = out_ptr + v * out_stride_v
    if PATCH:
        patch = out_y // PATCH * (out_width // PATCH) + out_x // PATCH
        to += patch * (3 * PATCH * PATCH) + out_y % PATCH * PATCH + out_x % PATCH
        plane = PATCH * PATCH
    else:
        to += i
        plane = out_height * out_width
    tl.store(to, red.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(to + plane, green.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(to + 2 * plane, blue.to(out_ptr.dtype.element_ty), mask=inside)


def bind(images: Tensor, out: Tensor, s: Settings) -> Callable[[], None]:
    """A launch on these tensors; the shapes are checked by the caller."""
    views, height, width, _ = images.shape
    box = place((height, width), s.size, s.fit)
    y, x = _axes(images.device, s.filter, (height, width), box, s.pad)
    values, norm = _tables(images.device, s.mean, s.std, out.dtype)
    # The interpreter's time is in the number of its steps, not in their width.
    options = OPTIONS | {"BLOCK": 8192} if env.triton_interpret() else OPTIONS
    tiles = triton.cdiv(s.size[0] * s.size[1], options["BLOCK"])
    geometry = (height, width, y.weights.shape[1], x.weights.shape[1], *box[:4], *s.size, tiles)
    strides = (*images.stride(), out.stride(0))
    tables = (y.first, y.weights, x.first, x.weights, values, norm)
    flags: dict[str, Any] = {"WHOLE": y.weights.dtype == torch.int32, "PATCH": s.patch}
    given: list[Any] = [images, *tables, out, *geometry, *strides, *s.pad]

    def run() -> None:
        with torch.cuda.device_of(images):
            image_prep_kernel[(views * tiles,)](*given, **flags, **options)

    return run


@lru_cache(maxsize=64)
def _axes(
    device: torch.device, filter: str, image: tuple[int, int], box: Box, pad: tuple[int, ...]
) -> tuple[Taps, Taps]:
    y, x = axes(filter, image, box, pad)
    return Taps(*(table.to(device) for table in y)), Taps(*(table.to(device) for table in x))


@lru_cache(maxsize=64)
def _tables(
    device: torch.device, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What each level becomes, computed where the definition computes it, and the constants."""
    norm = normalisation(mean, std)
    shift, scale = (torch.tensor(v)[:, None] for v in norm[1:])
    values = (torch.arange(256.0) / norm.divisor - shift) / scale
    constants = torch.tensor([norm.divisor, *norm.mean, *norm.std])
    inverses = 1.0 / constants[[0, 4, 5, 6]]
    return values.to(dtype).to(device), torch.cat((constants, inverses)).to(device)
