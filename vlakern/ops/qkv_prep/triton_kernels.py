"""``qkv_prep`` in Triton: a program per token and part, backward per run of tokens and part.

Parts: 0 is q, 1 is k, 2 is v, which is only moved. Letters: E rows of one expert, T joint rows, H
query heads, G key-value heads, D head dim, N runs of tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlakern import env
from vlakern.ops._triton import rounded
from vlakern.ops.qkv_prep._check import Call, Expert
from vlakern.ops.qkv_prep.reference import Gradients

__all__ = [
    "launch",
    "launch_backward",
    "options",
    "qkv_prep_backward_kernel",
    "qkv_prep_kernel",
    "runs_of",
]


def options(heads: int, groups: int, head_dim: int) -> dict[str, Any]:
    """Settings: a program holds all heads of a token, some 4 pairs per thread."""
    blocks = {
        "HEADS": triton.next_power_of_2(max(heads, groups)),
        "HALF": triton.next_power_of_2(head_dim // 2),
    }
    pairs = blocks["HEADS"] * blocks["HALF"]
    return blocks | {"num_warps": min(max(pairs // 128, 1), 32), "enable_fp_fusion": False}


def runs_of(tokens: int) -> int:
    """N: a run has at least some 2 tokens, and there are at most 256."""
    return max(1, min(-(-tokens // 2), 256))


@triton.jit
def _load_pair(ptr, at, half, inside):
    low = tl.load(ptr + at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(ptr + at + half, mask=inside, other=0.0).to(tl.float32)
    return low, high


@triton.jit
def _store_pair(ptr, at, half, inside, low, high, WIDEN: tl.constexpr = False):  # pyright: ignore[reportArgumentType]
    tl.store(ptr + at, rounded(low, ptr.dtype.element_ty, WIDEN), mask=inside)
    tl.store(ptr + at + half, rounded(high, ptr.dtype.element_ty, WIDEN), mask=inside)


@triton.jit
def _load_weight(q_weight_ptr, k_weight_ptr, part, i, half, within, PLUS_ONE: tl.constexpr):
    weight_ptr = q_weight_ptr
    if part == 1:
        weight_ptr = k_weight_ptr
    low, high = _load_pair(weight_ptr, i, half, within)
    if PLUS_ONE:
        low += 1.0
        high += 1.0
    return low[None, :], high[None, :]


@triton.jit
def _reciprocal_root(low, high, half, eps):
    square = tl.sum(low * low + high * high, 1)[:, None]  # pyright: ignore[reportArgumentType]
    return 1.0 / tl.sqrt_rn(square / (2 * half) + eps)


@triton.jit
def qkv_prep_kernel(
    q_ptr,  # [E, H, D]
    k_ptr,  # [E, G, D]
    v_ptr,  # [E, G, D]
    rows_ptr,  # [E]
    q_weight_ptr,  # [D] if NORM
    k_weight_ptr,  # [D] if NORM
    cos_ptr,  # [T, D / 2]
    sin_ptr,  # [T, D / 2]
    q_out_ptr,  # [E, H, D]
    k_out_ptr,  # [S, G, D]
    v_out_ptr,  # [S, G, D]
    row_offset,
    heads,
    groups,
    half,
    eps,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    rows_stride,
    cos_stride,
    sin_stride,
    q_out_row,
    q_out_head,
    k_out_row,
    k_out_head,
    v_out_row,
    v_out_head,
    NORM: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    WIDEN: tl.constexpr,
):
    e = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = tl.load(rows_ptr + e * rows_stride).to(tl.int64)
    i = tl.arange(0, HALF)  # [HALF]
    head = tl.arange(0, HEADS)[:, None]  # [HEADS, 1]
    within = i < half
    # Pointers, strides and heads of this part.
    x_ptr = q_ptr + e * q_row
    y_ptr = q_out_ptr + e * q_out_row
    x_head = q_head
    y_head = q_out_head
    count = heads
    if part == 1:
        x_ptr = k_ptr + e * k_row
        y_ptr = k_out_ptr + (row + row_offset) * k_out_row
        x_head = k_head
        y_head = k_out_head
        count = groups
    if part == 2:
        x_ptr = v_ptr + e * v_row
        y_ptr = v_out_ptr + (row + row_offset) * v_out_row
        x_head = v_head
        y_head = v_out_head
        count = groups
    inside = (head < count) & within[None, :]
    low, high = _load_pair(x_ptr, head * x_head + i[None, :], half, inside)
    to = head * y_head + i[None, :]
    if part == 2:
        _store_pair(y_ptr, to, half, inside, low, high, WIDEN)
    else:
        cos = tl.load(cos_ptr + row * cos_stride + i, mask=within, other=0.0)[None, :]
        sin = tl.load(sin_ptr + row * sin_stride + i, mask=within, other=0.0)[None, :]
        if NORM:
            r = _reciprocal_root(low, high, half, eps)
            w_low, w_high = _load_weight(
                q_weight_ptr, k_weight_ptr, part, i, half, within, PLUS_ONE
            )
            low = low * r * w_low
            high = high * r * w_high
        turned = low * cos - high * sin
        _store_pair(y_ptr, to, half, inside, turned, high * cos + low * sin, WIDEN)


@triton.jit
def qkv_prep_backward_kernel(
    q_ptr,  # [E, H, D]
    k_ptr,  # [E, G, D]
    rows_ptr,  # [E]
    q_weight_ptr,  # [D] if NORM
    k_weight_ptr,  # [D] if NORM
    cos_ptr,  # [T, D / 2]
    sin_ptr,  # [T, D / 2]
    dq_ptr,  # [E, H, D] given
    dk_ptr,  # [T, G, D] given
    dv_ptr,  # [T, G, D] given
    to_q_ptr,  # [E, H, D]
    to_k_ptr,  # [E, G, D]
    to_v_ptr,  # [E, G, D]
    partial_ptr,  # [2, N, D] if NORM
    dcos_ptr,  # [2, T, D / 2] if ANGLES
    dsin_ptr,  # [2, T, D / 2] if ANGLES
    tokens,
    joint_rows,
    heads,
    groups,
    half,
    eps,
    q_row,
    q_head,
    k_row,
    k_head,
    rows_stride,
    cos_stride,
    sin_stride,
    dq_row,
    dq_head,
    dk_row,
    dk_head,
    dv_row,
    dv_head,
    to_q_row,
    to_q_head,
    to_k_row,
    to_k_head,
    to_v_row,
    to_v_head,
    NORM: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    ANGLES: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    run = tl.program_id(0).to(tl.int64)
    runs = tl.num_programs(0)
    part = tl.program_id(1)
    i = tl.arange(0, HALF)  # [HALF]
    head = tl.arange(0, HEADS)[:, None]  # [HEADS, 1]
    within = i < half
    count = groups
    if part == 0:
        count = heads
    inside = (head < count) & within[None, :]
    per_run = (tokens + runs - 1) // runs
    first = run * per_run
    last = tl.minimum(tokens, first + per_run)
    sum_low = tl.zeros((HALF,), tl.float32)
    sum_high = tl.zeros((HALF,), tl.float32)
    for e in range(first, last):
        row = tl.load(rows_ptr + e * rows_stride).to(tl.int64)
        if part == 2:
            at = row * dv_row + head * dv_head + i[None, :]
            low, high = _load_pair(dv_ptr, at, half, inside)
            at = e * to_v_row + head * to_v_head + i[None, :]
            _store_pair(to_v_ptr, at, half, inside, low, high)
        else:
            x_ptr = q_ptr + e * q_row
            g_ptr = dq_ptr + e * dq_row
            to_ptr = to_q_ptr + e * to_q_row
            x_head = q_head
            g_head = dq_head
            to_head = to_q_head
            if part == 1:
                x_ptr = k_ptr + e * k_row
                g_ptr = dk_ptr + row * dk_row
                to_ptr = to_k_ptr + e * to_k_row
                x_head = k_head
                g_head = dk_head
                to_head = to_k_head
            cos = tl.load(cos_ptr + row * cos_stride + i, mask=within, other=0.0)[None, :]
            sin = tl.load(sin_ptr + row * sin_stride + i, mask=within, other=0.0)[None, :]
            low, high = _load_pair(x_ptr, head * x_head + i[None, :], half, inside)
            g_low, g_high = _load_pair(g_ptr, head * g_head + i[None, :], half, inside)
            back_low = g_low * cos + g_high * sin
            back_high = g_high * cos - g_low * sin
            d_low = back_low
            d_high = back_high
            if NORM:
                r = _reciprocal_root(low, high, half, eps)
                w_low, w_high = _load_weight(
                    q_weight_ptr, k_weight_ptr, part, i, half, within, PLUS_ONE
                )
                low = low * r
                high = high * r
                u_low = back_low * w_low
                u_high = back_high * w_high
                along = tl.sum(u_low * low + u_high * high, 1)[:, None] / (2 * half)  # pyright: ignore[reportArgumentType]
                d_low = r * (u_low - low * along)
                d_high = r * (u_high - high * along)
                sum_low += tl.sum(back_low * low, 0)
                sum_high += tl.sum(back_high * high, 0)
                low = low * w_low
                high = high * w_high
            _store_pair(to_ptr, head * to_head + i[None, :], half, inside, d_low, d_high)
            if ANGLES:
                angle = (part.to(tl.int64) * joint_rows + row) * half + i  # pyright: ignore[reportAttributeAccessIssue]
                tl.store(dcos_ptr + angle, tl.sum(low * g_low + high * g_high, 0), mask=within)
                tl.store(dsin_ptr + angle, tl.sum(low * g_high - high * g_low, 0), mask=within)
    if NORM:  # noqa: SIM102 (NORM is known to the compiler, part is not)
        if part < 2:
            place = (part.to(tl.int64) * runs + run) * 2 * half + i  # pyright: ignore[reportAttributeAccessIssue]
            _store_pair(partial_ptr, place, half, within, sum_low, sum_high)


def _steps(*tensors: Tensor) -> tuple[int, ...]:
    """Strides of rows and heads."""
    return tuple(step for one in tensors for step in one.stride()[:2])


def _weights(expert: Expert) -> tuple[Tensor, Tensor]:
    """An absent weight still needs a pointer; the kernel does not follow it."""
    if expert.q_weight is None or expert.k_weight is None:
        return expert.q, expert.q
    return expert.q_weight, expert.k_weight


def launch(
    call: Call, q_outs: Sequence[Tensor], k_out: Tensor, v_out: Tensor, row_offset: int
) -> None:
    """Writes q of every expert and the joint k and v; the shapes are checked by the caller."""
    for one, q_out in zip(call.experts, q_outs, strict=True):
        tokens, heads, head_dim = one.q.shape
        groups = one.k.shape[1]
        if tokens == 0:
            continue
        pointers = (one.q, one.k, one.v, one.rows, *_weights(one), call.cos, call.sin)
        arguments: list[Any] = [*pointers, q_out, k_out, v_out, row_offset]
        arguments += [heads, groups, head_dim // 2, call.eps, *_steps(one.q, one.k, one.v)]
        arguments += [one.rows.stride(0), call.cos.stride(0), call.sin.stride(0)]
        arguments += _steps(q_out, k_out, v_out)
        flags: dict[str, Any] = {"NORM": one.q_weight is not None, "PLUS_ONE": call.plus_one}
        flags["WIDEN"] = env.triton_interpret()
        with torch.cuda.device_of(one.q):
            qkv_prep_kernel[(tokens, 3)](*arguments, **flags, **options(heads, groups, head_dim))


def launch_backward(
    call: Call, dq: Sequence[Tensor], dk: Tensor, dv: Tensor, found: Sequence[Gradients]
) -> None:
    """Fills the gradients of every expert; sums over tokens in two stages of fixed order."""
    joint_rows, half = call.cos.shape
    angles = found[0].cos is not None
    shape = (2, joint_rows, half) if angles else (0,)
    dcos, dsin = (torch.zeros(shape, device=dk.device) for _ in range(2))
    for one, grad, to in zip(call.experts, dq, found, strict=True):
        tokens, heads, head_dim = one.q.shape
        groups, runs = one.k.shape[1], runs_of(tokens)
        partial = torch.empty((2, runs, head_dim), device=dk.device)
        pointers = (one.q, one.k, one.rows, *_weights(one), call.cos, call.sin, grad, dk, dv)
        arguments: list[Any] = [*pointers, to.q, to.k, to.v, partial, dcos, dsin]
        arguments += [tokens, joint_rows, heads, groups, half, call.eps, *_steps(one.q, one.k)]
        arguments += [one.rows.stride(0), call.cos.stride(0), call.sin.stride(0)]
        arguments += _steps(grad, dk, dv, to.q, to.k, to.v)
        flags: dict[str, Any] = {"NORM": one.q_weight is not None, "PLUS_ONE": call.plus_one}
        settings = flags | {"ANGLES": angles} | options(heads, groups, head_dim)
        with torch.cuda.device_of(one.q):
            qkv_prep_backward_kernel[(runs, 3)](*arguments, **settings)
        if to.q_weight is not None and to.k_weight is not None:
            to.q_weight.copy_(partial[0].sum(0))
            to.k_weight.copy_(partial[1].sum(0))
    if angles:
        found[0].cos.copy_(dcos.sum(0))
        found[0].sin.copy_(dsin.sum(0))
