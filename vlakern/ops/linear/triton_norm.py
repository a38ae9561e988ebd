"""A product that is added to a residual stream, and the RMS norm of the sum, in one bound call.

Where parts of K are added by a kernel of their own that kernel normalises, too: in a chain of small
products a launch less is what counts. Letters: M rows, N columns, S parts of K.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# Triton types compile-time arguments as constexpr; kernels pass each other literals.
from functools import partial
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from vlakern.ops._triton import rounded
from vlakern.ops.linear._check import Adaptive
from vlakern.ops.linear.reference import LEVELS
from vlakern.ops.linear.triton_kernels import scaled, summed
from vlakern.ops.linear.triton_launch import (
    Product,
    Run,
    in_turn,
    launches,
    leave_sums,
    plan_of,
    widen,
)
from vlakern.ops.norm._check import Tensors as NormTensors
from vlakern.ops.norm._triton_launch import launch as launch_norm
from vlakern.ops.norm._triton_launch import options as norm_options

__all__ = ["add_norm_kernel", "bind"]


@triton.jit
def add_norm_kernel(
    sums,  # [S, M, N]
    x_scale,  # [M] if X_SCALED
    w_scale,  # [N] if W_SCALED
    bias,  # [N] if BIAS
    stream,  # [M, N], read and written
    normed,  # [M, N]
    factors,  # [N] if FACTORS
    scale,  # [B, N] if ADAPTIVE
    shift,  # [B, N] if ADAPTIVE
    gate,  # [B, N] if ADAPTIVE
    row_group,  # [M] if ADAPTIVE
    width,  # N
    splits,
    split_stride,  # M N
    stream_stride,
    normed_stride,
    scale_stride,
    shift_stride,
    gate_stride,
    eps,
    X_SCALED: tl.constexpr,
    W_SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    FACTORS: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One row: what ``finish_kernel`` makes of it, and what ``norm_kernel`` makes of that."""
    m = tl.program_id(0) + tl.zeros((BLOCK,), tl.int64)
    n = tl.arange(0, BLOCK)
    inside = n < width
    z = summed(sums + m * width + n, split_stride, splits, inside)
    z = scaled(z, m, n, inside, x_scale, w_scale, x_scale, bias, 0, X_SCALED, W_SCALED, False, BIAS)
    at = stream + m * stream_stride + n
    before = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    group = tl.full((BLOCK,), 0, tl.int64)
    if ADAPTIVE:
        group += tl.load(row_group + tl.program_id(0))
        product = rounded(z, stream.dtype.element_ty, WIDEN).to(tl.float32)
        factor = tl.load(gate + group * gate_stride + n, mask=inside, other=0.0)
        z = tl.fma(factor, product, before)
    else:
        z += before
    h = rounded(z, stream.dtype.element_ty, WIDEN)
    tl.store(at, h, mask=inside)
    h = h.to(tl.float32)
    r = 1.0 / tl.sqrt_rn(tl.sum(h * h, 0) / width + eps)
    y = h * r
    if FACTORS:
        y *= tl.load(factors + n, mask=inside, other=0.0)
    if ADAPTIVE:
        one = 1.0 + tl.load(scale + group * scale_stride + n, mask=inside, other=0.0)
        y = tl.fma(y, one, tl.load(shift + group * shift_stride + n, mask=inside, other=0.0))
    tl.store(
        normed + m * normed_stride + n, rounded(y, normed.dtype.element_ty, WIDEN), mask=inside
    )


def bind(
    p: Product,
    normed: Tensor,
    eps: float,
    workspace: Tensor | None,
    adaptive: Adaptive | None = None,
    factors: Tensor | None = None,
) -> Run:
    """``p.out += p.x Wᵀ`` and ``normed = p.out / rms(p.out)``; the residual is ``p.out``.

    ``factors`` are the norm's weight, where it is not adaptive.
    """
    if p.out.numel() == 0:
        return in_turn((), p.x)
    if not plan_of(p.x.shape[0], p.weights, p.activation).two_steps:
        return in_turn(_in_steps(p, normed, eps, workspace, adaptive, factors), p.x)
    runs, sums = leave_sums(p, workspace)
    w_scale, bias = p.weights.sections()[1:]
    splits, rows, width = sums.z.shape
    given = (sums.x_scale, w_scale, bias)
    tensors = tuple(p.out if one is None else one for one in given)
    vectors = adaptive[:3] if adaptive is not None else (p.out,) * 3
    row_group = p.out if adaptive is None else adaptive.row_group
    strides = [one.stride(0) for one in (p.out, normed, *vectors)]
    sizes = (width, splits, rows * width, *strides, eps)
    options: dict[str, Any] = {
        "X_SCALED": sums.x_scale is not None,
        "W_SCALED": p.weights.kind in LEVELS,
        "BIAS": p.weights.has_bias,
        "FACTORS": factors is not None,
        "ADAPTIVE": adaptive is not None,
        "WIDEN": widen(),
        **norm_options(width),
    }
    weight = p.out if factors is None else factors
    places = (sums.z, *tensors, p.out, normed, weight, *vectors, row_group)
    run = partial(add_norm_kernel[(rows,)], *places, *sizes, **options)
    return in_turn([*runs, run], p.x)


def _in_steps(
    p: Product,
    normed: Tensor,
    eps: float,
    workspace: Tensor | None,
    adaptive: Adaptive | None,
    factors: Tensor | None,
) -> list[Run]:
    """A product that is whole, and the norm."""
    if adaptive is None:
        tensors = NormTensors(p.out, factors, *(None,) * 6, normed, None)  # type: ignore[arg-type]
        return [*launches(p, workspace), partial(launch_norm, tensors, "rms", eps)]
    scale, shift, gate, row_group, added = adaptive
    given = (scale, shift, gate, added, row_group)
    tensors = NormTensors(p.out, None, None, *given, normed, p.out)
    product = p._replace(out=added, residual=None)
    return [*launches(product, workspace), partial(launch_norm, tensors, "rms", eps)]
