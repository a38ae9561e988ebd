"""``gated_mlp`` in Triton: the hidden layer quantised where it is made; products are ``linear``'s.

Letters: M rows, F hidden columns, S parts of the first product's K.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false
# Triton types compile-time arguments as constexpr; kernels pass each other literals.
import triton
import triton.language as tl

from vlakern.ops.linear.triton_kernels import finished, quantise, summed

__all__ = ["hidden_kernel"]


@triton.jit
def hidden_kernel(
    sums,  # [S, M, 2 F]
    x_scale,  # [M] if X_SCALED
    w_scale,  # [2 F] if W_SCALED
    bias,  # [2 F] if BIAS
    steps,  # [M, F padded]
    scales,  # [M]
    columns,  # F
    width,  # F padded
    splits,
    split_stride,  # 2 M F
    LEVELS: tl.constexpr,
    X_SCALED: tl.constexpr,
    W_SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One row: parts added, scales, bias, activation, gate, and quantised at once."""
    m = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BLOCK)
    inside = n < columns
    at = sums + m * 2 * columns + n
    gate = summed(at, split_stride, splits, inside).to(tl.float32)
    up = summed(at + columns, split_stride, splits, inside).to(tl.float32)
    if X_SCALED:
        x_factor = tl.load(x_scale + m)
        gate = gate * x_factor
        up = up * x_factor
    h = finished(
        gate,
        up,
        0,
        n,
        inside,
        columns,
        x_scale,
        w_scale,
        x_scale,
        bias,
        0,
        False,
        W_SCALED,
        False,
        BIAS,
        True,
        ACTIVATION,
    )
    step, scale = quantise(tl.where(inside, h, 0.0), steps.dtype.element_ty, LEVELS, WIDEN)
    tl.store(steps + m * width + n, step, mask=n < width)
    tl.store(scales + m, scale)
