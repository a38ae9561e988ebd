"""``flow_mix`` and ``flow_loss`` in Triton: programs over tiles of a row's counters.

A tile is BLOCK counters of four words, 4 · BLOCK elements. Noise has the bits of the CPU kernels:
the same polynomials, fused where they fuse. Sums are of tiles in their order, in fp64.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlakern.ops.flow_loss._check import Loss, Mix, Source
from vlakern.ops.flow_loss.reference import LAWS
from vlakern.ops.flow_loss.triton_noise import draw, drawn_tau

__all__ = [
    "BLOCK",
    "OPTIONS",
    "finish_kernel",
    "gradient",
    "gradient_kernel",
    "loss",
    "loss_kernel",
    "mix",
    "mix_kernel",
]

BLOCK = 256
ROWS = 1024  # partial sums at once
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def address(rows_ptr, rows_stride, r, HAS_ROWS: tl.constexpr):
    row = r
    if HAS_ROWS:
        row = tl.load(rows_ptr + r * rows_stride)
    return row


@triton.jit
def place(block, WORD: tl.constexpr, positions, slots):
    """Position, slot and presence of a word of every counter."""
    e = block // 16 * 64 + WORD * 16 + block % 16
    return e // slots, e % slots, e < positions * slots


@triton.jit
def noise_at(
    z, noise_ptr, nb, nh, na, slots_ptr, sb, sa, r, b, h, a, inside,
    HAS_NOISE: tl.constexpr, HAS_SLOTS: tl.constexpr,
):  # fmt: skip
    if HAS_NOISE:
        z = tl.load(noise_ptr + r * nb + h * nh + a * na, mask=inside, other=0.0)
    if HAS_SLOTS:
        z = z * tl.load(slots_ptr + b * sb + a * sa, mask=inside, other=0.0)
    return z


@triton.jit(do_not_specialize=["seed"])
def mix_kernel(
    action_ptr,  # [B, H, A]
    noise_ptr,  # [R, H, A] if HAS_NOISE
    rows_ptr,  # [R] if HAS_ROWS
    slots_ptr,  # [B, A] if HAS_SLOTS
    tau_ptr,  # [R, T] if HAS_TAU
    x_ptr,  # [R, H, A]
    tau_out_ptr,  # [R] unless PER_POSITION
    seed,
    positions,
    slots,
    per_sample,
    tiles,
    ab, ah, aa,
    nb, nh, na,
    xb, xh, xa,
    sb, sa,
    tb, th,
    ub,
    rows_stride,
    LAW: tl.constexpr,
    ALPHA: tl.constexpr,
    S: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_SLOTS: tl.constexpr,
    HAS_TAU: tl.constexpr,
    PER_POSITION: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    seed = seed.to(tl.int64)
    r = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    b = r // per_sample
    row = address(rows_ptr, rows_stride, r, HAS_ROWS)
    block = tile * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    share = tl.zeros((BLOCK,), tl.float32)
    if not PER_POSITION:
        first = tl.zeros((1,), tl.int32) + tile
        if HAS_TAU:
            tau = tl.load(tau_ptr + r * tb + first * 0)
        else:
            tau = drawn_tau(seed, row, LAW, ALPHA, S)
        tl.store(tau_out_ptr + r * ub + first * 0, tau, mask=first == 0)
        share = tl.broadcast_to(tau, (BLOCK,))
    z = draw(seed, row, block, HAS_NOISE)
    for WORD in tl.static_range(4):  # type: ignore
        h, a, inside = place(block, WORD, positions, slots)
        z_here = noise_at(
            z[WORD], noise_ptr, nb, nh, na, slots_ptr, sb, sa, r, b, h, a, inside,
            HAS_NOISE, HAS_SLOTS,
        )  # fmt: skip
        if PER_POSITION:
            share = tl.load(tau_ptr + r * tb + h * th, mask=inside, other=0.0)
        action = tl.load(action_ptr + b * ab + h * ah + a * aa, mask=inside, other=0.0)
        x = tl.fma(share, action, (1.0 - share) * z_here)
        tl.store(x_ptr + r * xb + h * xh + a * xa, x.to(x_ptr.dtype.element_ty), mask=inside)


@triton.jit
def error_at(
    z, velocity_ptr, vb, vh, va, action_ptr, ab, ah, aa, mask_ptr, mb, mh, ma, r, b, h, a, inside,
    HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Mask and v - (a - z), 0 where it does not count."""
    m = inside.to(tl.float32)
    if HAS_MASK:
        m = tl.load(mask_ptr + b * mb + h * mh + a * ma, mask=inside, other=0).to(tl.float32)
    action = tl.load(action_ptr + b * ab + h * ah + a * aa, mask=inside, other=0.0)
    velocity = tl.load(velocity_ptr + r * vb + h * vh + a * va, mask=inside, other=0.0)
    return m, tl.where(m == 0.0, 0.0, velocity.to(tl.float32) - (action - z))


@triton.jit(do_not_specialize=["seed"])
def loss_kernel(
    velocity_ptr,  # [R, H, A]
    action_ptr,  # [B, H, A]
    noise_ptr,  # [R, H, A] if HAS_NOISE
    rows_ptr,  # [R] if HAS_ROWS
    slots_ptr,  # [B, A] if HAS_SLOTS
    mask_ptr,  # [B, H, A] fp32 or uint8 if HAS_MASK
    sums_ptr,  # [2, R, tiles] fp64: squares and masks
    seed,
    positions,
    slots,
    per_sample,
    tiles,
    total,  # R tiles
    vb, vh, va,
    ab, ah, aa,
    nb, nh, na,
    mb, mh, ma,
    sb, sa,
    rows_stride,
    HAS_NOISE: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_SLOTS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    seed = seed.to(tl.int64)
    r = (tl.program_id(0) // tiles).to(tl.int64)
    b = r // per_sample
    row = address(rows_ptr, rows_stride, r, HAS_ROWS)
    block = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    z = draw(seed, row, block, HAS_NOISE)
    squares = tl.zeros((BLOCK,), tl.float32)
    masks = tl.zeros((BLOCK,), tl.float32)
    for WORD in tl.static_range(4):  # type: ignore
        h, a, inside = place(block, WORD, positions, slots)
        z_here = noise_at(
            z[WORD], noise_ptr, nb, nh, na, slots_ptr, sb, sa, r, b, h, a, inside,
            HAS_NOISE, HAS_SLOTS,
        )  # fmt: skip
        m, error = error_at(
            z_here, velocity_ptr, vb, vh, va, action_ptr, ab, ah, aa, mask_ptr, mb, mh, ma,
            r, b, h, a, inside, HAS_MASK,
        )  # fmt: skip
        squares = tl.fma(m * error, error, squares)
        masks = masks + m
    tl.store(sums_ptr + tl.program_id(0), tl.sum(squares.to(tl.float64), 0))
    tl.store(sums_ptr + total + tl.program_id(0), tl.sum(masks.to(tl.float64), 0))


@triton.jit
def finish_kernel(
    sums_ptr,  # [2, R, tiles] fp64
    group_ptr,  # [B] int32 if HAS_GROUP
    weights_ptr,  # [G] if HAS_WEIGHTS
    loss_ptr,  # [1]
    coefficients_ptr,  # [G]
    per_sample,
    tiles,
    total,  # R tiles
    groups,
    group_stride,
    weights_stride,
    coefficients_stride,
    HAS_GROUP: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Tiles to groups to the loss, in order, by one program."""
    loss = tl.zeros((1,), tl.float64)
    weight = tl.zeros((1,), tl.float64)
    for step in range(2 * groups):
        g = step % groups
        squares = tl.zeros((ROWS,), tl.float64)
        masks = tl.zeros((ROWS,), tl.float64)
        count = tl.zeros((ROWS,), tl.int32)
        for first in range(0, total, ROWS):
            i = first + tl.arange(0, ROWS)
            own = i < total
            if HAS_GROUP:
                b = i // tiles // per_sample
                own = own & (tl.load(group_ptr + b * group_stride, mask=own, other=-1) == g)
            count += own.to(tl.int32)
            squares += tl.load(sums_ptr + i, mask=own, other=0.0)
            masks += tl.load(sums_ptr + total + i, mask=own, other=0.0)
        w = tl.full((1,), 1.0, tl.float64)
        if HAS_WEIGHTS:
            w = w * tl.load(weights_ptr + g * weights_stride).to(tl.float64)
        w = tl.where(tl.max(count, 0) > 0, w, 0.0)  # type: ignore
        # The first round adds the weights up, the second divides by their sum.
        if step < groups:
            weight += w
        else:
            share = tl.where(w == 0.0, 0.0, w / tl.where(w == 0.0, 1.0, weight))
            share = share / (tl.sum(masks, 0) + 1e-8)
            loss += tl.where(w == 0.0, 0.0, share * tl.sum(squares, 0))
            at = coefficients_ptr + g * coefficients_stride + tl.zeros((1,), tl.int32)
            tl.store(at, (2.0 * share).to(tl.float32))
    tl.store(loss_ptr + tl.zeros((1,), tl.int32), loss.to(tl.float32))


@triton.jit(do_not_specialize=["seed"])
def gradient_kernel(
    velocity_ptr,  # [R, H, A]
    action_ptr,  # [B, H, A]
    noise_ptr,  # [R, H, A] if HAS_NOISE
    rows_ptr,  # [R] if HAS_ROWS
    slots_ptr,  # [B, A] if HAS_SLOTS
    mask_ptr,  # [B, H, A] fp32 or uint8 if HAS_MASK
    group_ptr,  # [B] int32 if HAS_GROUP
    coefficients_ptr,  # [G]
    grad_ptr,  # [1]
    out_ptr,  # [R, H, A]
    seed,
    positions,
    slots,
    per_sample,
    tiles,
    vb, vh, va,
    ab, ah, aa,
    nb, nh, na,
    mb, mh, ma,
    ob, oh, oa,
    sb, sa,
    rows_stride,
    group_stride,
    coefficients_stride,
    HAS_NOISE: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_SLOTS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    seed = seed.to(tl.int64)
    r = (tl.program_id(0) // tiles).to(tl.int64)
    b = r // per_sample
    row = address(rows_ptr, rows_stride, r, HAS_ROWS)
    block = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    g = b * 0
    if HAS_GROUP:
        g = tl.load(group_ptr + b * group_stride).to(tl.int64)
    scale = tl.load(grad_ptr) * tl.load(coefficients_ptr + g * coefficients_stride)
    z = draw(seed, row, block, HAS_NOISE)
    for WORD in tl.static_range(4):  # type: ignore
        h, a, inside = place(block, WORD, positions, slots)
        z_here = noise_at(
            z[WORD], noise_ptr, nb, nh, na, slots_ptr, sb, sa, r, b, h, a, inside,
            HAS_NOISE, HAS_SLOTS,
        )  # fmt: skip
        m, error = error_at(
            z_here, velocity_ptr, vb, vh, va, action_ptr, ab, ah, aa, mask_ptr, mb, mh, ma,
            r, b, h, a, inside, HAS_MASK,
        )  # fmt: skip
        slope = scale * (m * error)
        tl.store(
            out_ptr + r * ob + h * oh + a * oa, slope.to(out_ptr.dtype.element_ty), mask=inside
        )


def mix(t: Mix) -> None:
    """Writes ``x`` and ``tau_out``; the shapes are checked by the caller."""
    per_position = t.tau is not None and t.tau.ndim == 2
    if t.tau is not None and per_position:
        t.tau_out.copy_(t.tau)
    if len(t.x) == 0:
        return
    sizes, flags = _sizes(t.source, len(t.x)), _flags(t.source)
    tau = _or(t.tau, t.tau_out)
    tau_strides = (tau.stride(0), tau.stride(1) if per_position else 0, t.tau_out.stride(0))
    action, noise, slots = t.source.action, *_optional(t.source)
    strides = (*action.stride(), *noise.stride()[:3], *t.x.stride(), *slots.stride()[:2])
    pointers = (action, noise, _or(t.source.rows, action), slots, tau, t.x, t.tau_out)
    flags |= {"LAW": LAWS.index(t.law.kind), "ALPHA": t.law.alpha, "S": t.law.s}
    flags |= {"HAS_TAU": t.tau is not None, "PER_POSITION": per_position, "BLOCK": BLOCK}
    strides += (*tau_strides, _row_stride(t.source))
    given: list[Any] = [*pointers, t.source.seed, *sizes, *strides]
    with torch.cuda.device_of(action):
        mix_kernel[(len(t.x) * sizes[-1],)](*given, **flags, **OPTIONS)


def loss(t: Loss) -> None:
    """Writes the loss and the coefficients."""
    rows, sizes, flags = len(t.velocity), _sizes(t.source, len(t.velocity)), _flags(t.source)
    action, noise, slots = t.source.action, *_optional(t.source)
    total = rows * sizes[-1]
    sums = torch.empty((2, max(total, 1)), dtype=torch.float64, device=action.device)
    mask = _mask(t)
    strides = (*t.velocity.stride(), *action.stride(), *noise.stride()[:3], *mask.stride()[:3])
    pointers = (t.velocity, action, noise, _or(t.source.rows, action), slots, mask, sums)
    strides += (*slots.stride()[:2], _row_stride(t.source))
    given: list[Any] = [*pointers, t.source.seed, *sizes, total, *strides]
    flags |= {"HAS_MASK": t.mask is not None, "BLOCK": BLOCK}
    group, weights = _or(t.group, action), _or(t.weights, action)
    steps = (group.stride(0), weights.stride(0), t.coefficients.stride(0))
    groups = len(t.coefficients)
    tail: list[Any] = [sums, group, weights, t.loss, t.coefficients, *sizes[2:], total, groups]
    tail += steps
    has: dict[str, Any] = {"HAS_GROUP": t.group is not None, "HAS_WEIGHTS": t.weights is not None}
    has["ROWS"] = ROWS
    with torch.cuda.device_of(action):
        if total:
            loss_kernel[(total,)](*given, **flags, **OPTIONS)
        finish_kernel[(1,)](*tail, **has, **OPTIONS)


def gradient(t: Loss, grad: Tensor, out: Tensor) -> None:
    """Writes the gradient of the velocity, given that of the loss ``[1]``."""
    if out.numel() == 0:
        return
    sizes, flags = _sizes(t.source, len(out)), _flags(t.source)
    action, noise, slots = t.source.action, *_optional(t.source)
    mask, group = _mask(t), _or(t.group, action)
    parts = (t.velocity, action, noise, mask)
    strides = [step for one in parts for step in one.stride()[:3]]
    pointers = (t.velocity, action, noise, _or(t.source.rows, action), slots, mask, group)
    strides += out.stride()
    given: list[Any] = [*pointers, t.coefficients, grad, out, t.source.seed, *sizes, *strides]
    given += (*slots.stride()[:2], _row_stride(t.source))
    given += (group.stride(0), t.coefficients.stride(0))
    flags |= {"HAS_MASK": t.mask is not None, "HAS_GROUP": t.group is not None, "BLOCK": BLOCK}
    with torch.cuda.device_of(action):
        gradient_kernel[(len(out) * sizes[-1],)](*given, **flags, **OPTIONS)


def _sizes(source: Source, rows: int) -> tuple[int, int, int, int]:
    """Positions, slots, rows per sample and tiles per row; a row without elements has a tile."""
    samples, positions, slots = source.action.shape
    tiles = max(1, triton.cdiv(positions * slots, 4 * BLOCK))
    return positions if slots else 0, max(slots, 1), max(1, rows // max(samples, 1)), tiles


def _flags(source: Source) -> dict[str, Any]:
    named = {"NOISE": source.noise, "ROWS": source.rows, "SLOTS": source.slots}
    return {f"HAS_{name}": one is not None for name, one in named.items()}


def _optional(source: Source) -> tuple[Tensor, Tensor]:
    return _or(source.noise, source.action), _or(source.slots, source.action)


def _or(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    """An absent argument still needs a pointer; the kernel does not follow it."""
    return stand_in if tensor is None else tensor


def _mask(t: Loss) -> Tensor:
    mask = _or(t.mask, t.source.action)
    return mask.view(torch.uint8) if mask.dtype == torch.bool else mask


def _row_stride(source: Source) -> int:
    return 0 if source.rows is None else source.rows.stride(0)
