"""``linear`` in Triton: rows quantised, products over parts of K, and what follows them.

A program of the product owns ``BLOCK_N`` weight rows (of gate and of up, if gated), ``BLOCK_M``
rows of x and one part of K. It multiplies weights by transposed rows, so that few rows are the
narrow side of a tensor core's tile, and weights that are converted stay in registers. Letters: M
rows, K inputs, N weight rows, C columns, S parts of K.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# Triton types compile-time arguments as constexpr; kernels pass each other literals.
import triton
import triton.language as tl

from vlakern.ops._triton import rounded

__all__ = ["finish_kernel", "finished", "product_kernel", "quantise", "quantize_kernel"]


@triton.jit
def to_e4m3(x, dtype, WIDEN: tl.constexpr):
    """fp32 within +-448 to e4m3, to nearest even. WIDEN: the interpreter would truncate."""
    if WIDEN:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & 0xFFF00000
        normal = bits.to(tl.float32, bitcast=True)
        # Between 2^14 and 2^15 fp32 counts in steps of 2^-9, as e4m3 does below 2^-6.
        x = tl.where(tl.abs(x) < 0.015625, (x + 24576.0) - 24576.0, normal)
    return x.to(dtype)


@triton.jit
def quantise(v, dtype, LEVELS: tl.constexpr, WIDEN: tl.constexpr):
    """A row ``v [BLOCK]`` in fp32 as ``(steps, scale)``; see ``quantize_rows`` of reference.py."""
    most = tl.max(tl.abs(v), 0)
    some = most > 1e-30
    inverse = tl.where(some, tl.div_rn(LEVELS + 0.0, tl.where(some, most, 1.0)), 0.0)
    scale = tl.where(some, tl.div_rn(most, LEVELS + 0.0), 0.0) + tl.sum(v * 0.0, 0)
    step = v * inverse
    if LEVELS == 127:
        step = (step + 12582912.0) - 12582912.0  # 1.5 * 2^23: to integers, halves to even
        step = tl.where(tl.abs(step) <= 127.0, step, 0.0).to(dtype)
    else:
        step = tl.where(tl.abs(step) <= 449.0, step, 0.0)
        step = to_e4m3(tl.minimum(tl.maximum(step, -448.0), 448.0), dtype, WIDEN)
    return step, scale


@triton.jit
def quantize_kernel(
    x,  # [M, K]
    steps,  # [M, K padded]
    scales,  # [M]
    k,
    width,  # K padded
    x_stride,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One row of x."""
    m = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    v = tl.load(x + m * x_stride + i, mask=i < k, other=0.0).to(tl.float32)
    step, scale = quantise(v, steps.dtype.element_ty, LEVELS, WIDEN)
    tl.store(steps + m * width + i, step, mask=i < width)
    tl.store(scales + m, scale)


@triton.jit
def activated(z, ACTIVATION: tl.constexpr):
    """See ``activate`` of reference.py; NaN stays NaN."""
    if ACTIVATION == "silu" or ACTIVATION == "silu_gate":
        z = z / (1.0 + tl.exp(-z))
    elif ACTIVATION == "gelu_erf":
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh" or ACTIVATION == "gelu_tanh_gate":
        # (1 + tanh u) / 2 is the logistic function of 2 u.
        u = 1.5957691216057308 * (z + 0.044715 * z * z * z)
        z = z / (1.0 + tl.exp(-u))
    elif ACTIVATION == "relu":
        z = tl.where(z < 0.0, 0.0, z)
    return z


@triton.jit
def scaled(
    z,
    m,
    n,
    inside,
    x_scale,
    w_scale,
    row_scale,
    bias,
    bias_stride,
    X_SCALED: tl.constexpr,
    W_SCALED: tl.constexpr,
    ROW_SCALED: tl.constexpr,
    BIAS: tl.constexpr,
):
    """Sums of products times every scale, and the bias; ``m`` and ``n`` broadcast to them."""
    z = z.to(tl.float32)
    if X_SCALED:
        z = z * tl.load(x_scale + m, mask=inside, other=0.0)
    if W_SCALED:
        z = z * tl.load(w_scale + n, mask=inside, other=0.0)
    if ROW_SCALED:
        z = z * tl.load(row_scale + m, mask=inside, other=0.0)
    if BIAS:
        z = z + tl.load(bias + m * bias_stride + n, mask=inside, other=0.0).to(tl.float32)
    return z


@triton.jit
def finished(
    z,
    up,  # like z if GATED
    m,
    n,
    inside,
    columns,
    x_scale,
    w_scale,
    row_scale,
    bias,
    bias_stride,
    X_SCALED: tl.constexpr,
    W_SCALED: tl.constexpr,
    ROW_SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Scales, bias, activation and gate."""
    z = scaled(
        z,
        m,
        n,
        inside,
        x_scale,
        w_scale,
        row_scale,
        bias,
        bias_stride,
        X_SCALED,
        W_SCALED,
        ROW_SCALED,
        BIAS,
    )
    z = activated(z, ACTIVATION)
    if GATED:
        up = scaled(
            up,
            m,
            n + columns,
            inside,
            x_scale,
            w_scale,
            row_scale,
            bias,
            bias_stride,
            X_SCALED,
            W_SCALED,
            ROW_SCALED,
            BIAS,
        )
        z = z * up
    return z


@triton.jit
def multiplied(w, x, acc, KIND: tl.constexpr, BLOCK_K: tl.constexpr, WIDEN: tl.constexpr):
    """w xᵀ + acc of tiles; ``w [BLOCK_N, BLOCK_K]`` as stored, ``x [BLOCK_M, BLOCK_K]``."""
    if KIND == "int8":
        return tl.dot(w, tl.trans(x), acc)
    elif KIND == "fp8":
        # Tensor cores of sm_90 keep 14 bits of a sum: it is taken out of them after each tile.
        return tl.dot(w, tl.trans(x), acc, max_num_imprecise_acc=BLOCK_K)
    elif KIND == "fp32":
        return tl.dot(w, tl.trans(x.to(tl.float32)), acc, input_precision="ieee")
    else:
        if x.dtype == tl.float32:
            x = rounded(x, tl.bfloat16, WIDEN)
        if WIDEN:
            return tl.dot(w.to(tl.float32), tl.trans(x.to(tl.float32)), acc)
        else:
            return tl.dot(w.to(tl.bfloat16), tl.trans(x), acc)


@triton.jit
def product_kernel(
    x,  # [M, K], quantised of int8 and fp8
    weight,  # [N, K padded]
    x_scale,  # [M] if X_SCALED
    w_scale,  # [N] if W_SCALED
    row_scale,  # [M] if ROW_SCALED
    bias,  # [N] or [M, N] if BIAS
    residual,  # [M, C] if RESIDUAL
    out,  # [M, C], or sums [S, M, C] of a split product
    rows,
    columns,
    k,
    chunk,
    tiles,  # of rows
    x_stride,
    w_stride,
    bias_stride,
    residual_stride,
    out_stride,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
    SPLIT: tl.constexpr,
    X_SCALED: tl.constexpr,
    W_SCALED: tl.constexpr,
    ROW_SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDEN: tl.constexpr,
):
    m = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) // tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    # What lies outside reads the last row and column again, and is not written.
    x_at = x + tl.minimum(m, rows - 1).to(tl.int64)[:, None] * x_stride
    first = tl.minimum(n, columns - 1).to(tl.int64)
    w_at = weight + first[:, None] * w_stride
    up_at = weight + (first + columns)[:, None] * w_stride
    ACC: tl.constexpr = tl.int32 if KIND == "int8" else tl.float32
    acc_NM = tl.zeros((BLOCK_N, BLOCK_M), ACC)
    up_NM = tl.zeros((BLOCK_N, BLOCK_M), ACC)
    for start in range(split * chunk, tl.minimum(k, (split + 1) * chunk), BLOCK_K):
        i = start + tl.arange(0, BLOCK_K)[None, :]
        if EVEN_K:
            x_MK = tl.load(x_at + i)
            w_NK = tl.load(w_at + i)
        else:
            x_MK = tl.load(x_at + i, mask=i < k, other=0.0)
            w_NK = tl.load(w_at + i, mask=i < w_stride, other=0.0)
        acc_NM = multiplied(w_NK, x_MK, acc_NM, KIND, BLOCK_K, WIDEN)
        if GATED:
            if EVEN_K:
                u_NK = tl.load(up_at + i)
            else:
                u_NK = tl.load(up_at + i, mask=i < w_stride, other=0.0)
            up_NM = multiplied(u_NK, x_MK, up_NM, KIND, BLOCK_K, WIDEN)

    m = m[:, None]
    n = n[None, :]
    inside = (m < rows) & (n < columns)
    z_MN = tl.trans(acc_NM)
    row = m.to(tl.int64)
    if SPLIT:
        at = out + (split.to(tl.int64) * rows + row) * columns + n
        tl.store(at, z_MN, mask=inside)
    else:
        z_MN = finished(
            z_MN,
            tl.trans(up_NM),
            row,
            n,
            inside,
            columns,
            x_scale,
            w_scale,
            row_scale,
            bias,
            bias_stride,
            X_SCALED,
            W_SCALED,
            ROW_SCALED,
            BIAS,
            GATED,
            ACTIVATION,
        )
        if RESIDUAL:
            at = residual + row * residual_stride + n
            z_MN += tl.load(at, mask=inside, other=0.0).to(tl.float32)
        at = out + row * out_stride + n
        tl.store(at, rounded(z_MN, out.dtype.element_ty, WIDEN), mask=inside)


@triton.jit
def summed(sums, split_stride, splits, inside):
    """The parts of K added in their order."""
    total = tl.load(sums, mask=inside, other=0)
    for split in range(1, splits):
        at = (tl.full((), 0, tl.int64) + split) * split_stride
        total += tl.load(sums + at, mask=inside, other=0)
    return total


@triton.jit
def finish_kernel(
    sums,  # [S, M, N]
    x_scale,  # [M] if X_SCALED
    w_scale,  # [N] if W_SCALED
    row_scale,  # [M] if ROW_SCALED
    bias,  # [N] or [M, N] if BIAS
    residual,  # [M, C] if RESIDUAL
    out,  # [M, C]
    width,  # N
    columns,
    splits,
    split_stride,  # M N
    bias_stride,
    residual_stride,
    out_stride,
    GATED: tl.constexpr,
    X_SCALED: tl.constexpr,
    W_SCALED: tl.constexpr,
    ROW_SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """``BLOCK`` columns of one row: the parts added, and what follows a product."""
    m = tl.program_id(0) + tl.zeros((BLOCK,), tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = n < columns
    at = sums + m * width + n
    z = summed(at, split_stride, splits, inside)
    up = z
    if GATED:
        up = summed(at + columns, split_stride, splits, inside)
    z = finished(
        z,
        up,
        m,
        n,
        inside,
        columns,
        x_scale,
        w_scale,
        row_scale,
        bias,
        bias_stride,
        X_SCALED,
        W_SCALED,
        ROW_SCALED,
        BIAS,
        GATED,
        ACTIVATION,
    )
    if RESIDUAL:
        z += tl.load(residual + m * residual_stride + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + m * out_stride + n, rounded(z, out.dtype.element_ty, WIDEN), mask=inside)
