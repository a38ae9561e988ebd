"""``norm`` in Triton: forward a row per program, backward a run of rows per program.

Backward sums over rows in two stages of fixed order: each program adds its run of rows to partial
sums, and a second kernel adds the runs. Letters: R rows, M width, B groups of rows, S runs of rows
per group.
"""

import triton
import triton.language as tl

from vlakern.ops._triton import rounded

__all__ = ["norm_backward_kernel", "norm_finish_kernel", "norm_kernel"]


@triton.jit
def _group(r, groups, rows, row_group_ptr, row_group_stride, INDEXED: tl.constexpr):
    if INDEXED:
        group = tl.load(row_group_ptr + r * row_group_stride).to(tl.int64)
    else:
        group = r // tl.maximum(rows // groups, 1)
    return group


@triton.jit
def _affine(
    group,
    i,
    inside,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    weight_stride,
    bias_stride,
    scale_stride,
    shift_stride,
    PLUS_ONE: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The factor a = w·(1 + scale) and addend c = bias·(1 + scale) + shift of one group."""
    a = tl.full((BLOCK,), 1.0, tl.float32)
    c = tl.zeros((BLOCK,), tl.float32)
    if SCALE:
        a += tl.load(scale_ptr + group * scale_stride + i, mask=inside, other=0.0).to(tl.float32)
    if SHIFT:
        c = tl.load(shift_ptr + group * shift_stride + i, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        bias = tl.load(bias_ptr + i * bias_stride, mask=inside, other=0.0).to(tl.float32)
        c = tl.fma(bias, a, c)
    if WEIGHT:
        w = tl.load(weight_ptr + i * weight_stride, mask=inside, other=0.0).to(tl.float32)
        if PLUS_ONE:
            w += 1.0
        a = w * a
    return a, c


@triton.jit
def _normalised(h, inside, width, eps, LAYER: tl.constexpr):
    """n and the reciprocal root; lanes outside stay 0."""
    if LAYER:
        h = tl.where(inside, h - tl.sum(h, 0) / width, 0.0)
    r = 1.0 / tl.sqrt_rn(tl.sum(h * h, 0) / width + eps)
    return h * r, r


@triton.jit
def norm_kernel(
    x_ptr,  # [R, M]
    weight_ptr,  # [M] if WEIGHT
    bias_ptr,  # [M] if BIAS
    scale_ptr,  # [B, M] if SCALE
    shift_ptr,  # [B, M] if SHIFT
    gate_ptr,  # [B, M] if GATE
    residual_ptr,  # [R, M] if RESIDUAL
    row_group_ptr,  # [R] if INDEXED
    y_ptr,  # [R, M]
    h_ptr,  # [R, M] if RESIDUAL
    rows,
    width,
    groups,
    eps,
    x_stride,
    weight_stride,
    bias_stride,
    scale_stride,
    shift_stride,
    gate_stride,
    residual_stride,
    row_group_stride,
    y_stride,
    h_stride,
    LAYER: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    SHIFT: tl.constexpr,
    GATE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    INDEXED: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDEN: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)  # [BLOCK]
    inside = i < width
    group = _group(r, groups, rows, row_group_ptr, row_group_stride, INDEXED)
    h = tl.load(x_ptr + r * x_stride + i, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        at = residual_ptr + r * residual_stride + i
        added = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        if GATE:
            gate = tl.load(gate_ptr + group * gate_stride + i, mask=inside, other=0.0)
            h = tl.fma(gate.to(tl.float32), added, h)
        else:
            h = h + added
        stored = rounded(h, h_ptr.dtype.element_ty, WIDEN)
        tl.store(h_ptr + r * h_stride + i, stored, mask=inside)
        h = stored.to(tl.float32)
    n, _ = _normalised(h, inside, width, eps, LAYER)
    a, c = _affine(
        group,
        i,
        inside,
        weight_ptr,
        bias_ptr,
        scale_ptr,
        shift_ptr,
        weight_stride,
        bias_stride,
        scale_stride,
        shift_stride,
        PLUS_ONE,
        WEIGHT,
        BIAS,
        SCALE,
        SHIFT,
        BLOCK,
    )
    y = rounded(tl.fma(n, a, c), y_ptr.dtype.element_ty, WIDEN)
    tl.store(y_ptr + r * y_stride + i, y, mask=inside)


@triton.jit
def norm_backward_kernel(
    dy_ptr,  # [R, M]
    dh_ptr,  # [R, M] if GRAD_H
    h_ptr,  # [R, M]
    weight_ptr,  # [M] if WEIGHT
    scale_ptr,  # [B, M] if SCALE
    gate_ptr,  # [B, M] if GATE
    residual_ptr,  # [R, M] if GATE
    order_ptr,  # [R] rows by group, if INDEXED
    start_ptr,  # [B + 1] first place of each group in it, if INDEXED
    dx_ptr,  # [R, M]
    dresidual_ptr,  # [R, M] if RESIDUAL
    p_ptr,  # [B * S, M] if WEIGHT or SCALE
    q_ptr,  # [B * S, M] if BIAS or SHIFT
    g_ptr,  # [B * S, M] if GATE
    rows,
    width,
    groups,
    runs,
    eps,
    dy_stride,
    dh_stride,
    h_stride,
    weight_stride,
    scale_stride,
    gate_stride,
    residual_stride,
    dx_stride,
    dresidual_stride,
    LAYER: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    SHIFT: tl.constexpr,
    GATE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    INDEXED: tl.constexpr,
    GRAD_H: tl.constexpr,
    BLOCK: tl.constexpr,
):
    run = tl.program_id(0).to(tl.int64)
    group = run // runs
    i = tl.arange(0, BLOCK)  # [BLOCK]
    inside = i < width
    if INDEXED:
        first = tl.load(start_ptr + group).to(tl.int64)
        last = tl.load(start_ptr + group + 1).to(tl.int64)
    else:
        first = group * (rows // groups)
        last = first + rows // groups
    per_run = (last - first + runs - 1) // runs
    first += run % runs * per_run
    last = tl.minimum(last, first + per_run)
    a, _ = _affine(
        group,
        i,
        inside,
        weight_ptr,
        weight_ptr,
        scale_ptr,
        scale_ptr,
        weight_stride,
        0,
        scale_stride,
        0,
        PLUS_ONE,
        WEIGHT,
        False,  # pyright: ignore[reportArgumentType]
        SCALE,
        False,  # pyright: ignore[reportArgumentType]
        BLOCK,
    )
    gate = tl.full((BLOCK,), 1.0, tl.float32)
    if GATE:
        gate = tl.load(gate_ptr + group * gate_stride + i, mask=inside, other=0.0).to(tl.float32)
    p = tl.zeros((BLOCK,), tl.float32)
    q = tl.zeros((BLOCK,), tl.float32)
    g = tl.zeros((BLOCK,), tl.float32)
    for place in range(first, last):
        r = place
        if INDEXED:
            r = tl.load(order_ptr + place).to(tl.int64)
        h = tl.load(h_ptr + r * h_stride + i, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + r * dy_stride + i, mask=inside, other=0.0).to(tl.float32)
        n, scale = _normalised(h, inside, width, eps, LAYER)
        p = tl.fma(dy, n, p)
        q += dy
        u = dy * a
        down = tl.broadcast_to(-tl.sum(u * n, 0) / width, (BLOCK,))  # pyright: ignore[reportOperatorIssue]
        d = tl.fma(n, down, u)
        if LAYER:
            d -= tl.sum(u, 0) / width
        if GRAD_H:
            dh = tl.load(dh_ptr + r * dh_stride + i, mask=inside, other=0.0).to(tl.float32)
            d = tl.fma(d, tl.broadcast_to(scale, (BLOCK,)), dh)
        else:
            d = d * scale
        tl.store(dx_ptr + r * dx_stride + i, d.to(dx_ptr.dtype.element_ty), mask=inside)
        if GATE:
            at = residual_ptr + r * residual_stride + i
            g = tl.fma(tl.load(at, mask=inside, other=0.0).to(tl.float32), d, g)
        if RESIDUAL:
            at = dresidual_ptr + r * dresidual_stride + i
            tl.store(at, (d * gate).to(dresidual_ptr.dtype.element_ty), mask=inside)
    if WEIGHT or SCALE:
        tl.store(p_ptr + run * width + i, p, mask=inside)
    if BIAS or SHIFT:
        tl.store(q_ptr + run * width + i, q, mask=inside)
    if GATE:
        tl.store(g_ptr + run * width + i, g, mask=inside)


@triton.jit
def _sum_runs(base_ptr, group, runs, width, i, inside, TILE: tl.constexpr):
    total = tl.zeros((TILE,), tl.float32)
    for run in range(group * runs, (group + 1) * runs):
        total += tl.load(base_ptr + run * width + i, mask=inside, other=0.0)
    return total


@triton.jit
def norm_finish_kernel(
    weight_ptr,  # [M] if WEIGHT
    bias_ptr,  # [M] if BIAS
    scale_ptr,  # [B, M] if SCALE
    p_ptr,  # [B * S, M] if WEIGHT or SCALE
    q_ptr,  # [B * S, M] if BIAS or SHIFT
    g_ptr,  # [B * S, M] if GATE
    dweight_ptr,  # [M] if WEIGHT
    dbias_ptr,  # [M] if BIAS
    dscale_ptr,  # [B, M] if SCALE
    dshift_ptr,  # [B, M] if SHIFT
    dgate_ptr,  # [B, M] if GATE
    width,
    groups,
    runs,
    weight_stride,
    bias_stride,
    scale_stride,
    PLUS_ONE: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    SHIFT: tl.constexpr,
    GATE: tl.constexpr,
    TILE: tl.constexpr,
):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)  # [TILE]
    inside = i < width
    w = tl.full((TILE,), 1.0, tl.float32)
    bias = tl.zeros((TILE,), tl.float32)
    if WEIGHT:
        w = tl.load(weight_ptr + i * weight_stride, mask=inside, other=0.0).to(tl.float32)
        if PLUS_ONE:
            w += 1.0
    if BIAS:
        bias = tl.load(bias_ptr + i * bias_stride, mask=inside, other=0.0).to(tl.float32)
    dweight = tl.zeros((TILE,), tl.float32)
    dbias = tl.zeros((TILE,), tl.float32)
    for b in range(groups):
        group = tl.full((), 0, tl.int64) + b
        up = tl.full((TILE,), 1.0, tl.float32)
        if SCALE:
            at = scale_ptr + group * scale_stride + i
            up += tl.load(at, mask=inside, other=0.0).to(tl.float32)
        p = tl.zeros((TILE,), tl.float32)
        q = tl.zeros((TILE,), tl.float32)
        if WEIGHT or SCALE:
            p = _sum_runs(p_ptr, group, runs, width, i, inside, TILE)
        if BIAS or SHIFT:
            q = _sum_runs(q_ptr, group, runs, width, i, inside, TILE)
        if WEIGHT:
            dweight = tl.fma(up, p, dweight)
        if BIAS:
            dbias = tl.fma(up, q, dbias)
        if SCALE:
            found = tl.fma(bias, q, w * p).to(dscale_ptr.dtype.element_ty)
            tl.store(dscale_ptr + group * width + i, found, mask=inside)
        if SHIFT:
            found = q.to(dshift_ptr.dtype.element_ty)
            tl.store(dshift_ptr + group * width + i, found, mask=inside)
        if GATE:
            found = _sum_runs(g_ptr, group, runs, width, i, inside, TILE)
            found = found.to(dgate_ptr.dtype.element_ty)
            tl.store(dgate_ptr + group * width + i, found, mask=inside)
    if WEIGHT:
        tl.store(dweight_ptr + i, dweight.to(dweight_ptr.dtype.element_ty), mask=inside)
    if BIAS:
        tl.store(dbias_ptr + i, dbias.to(dbias_ptr.dtype.element_ty), mask=inside)
