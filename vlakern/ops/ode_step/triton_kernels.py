"""``ode_step`` in Triton: one program per row and tile of its ``[H, A]`` elements."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlakern.ops.ode_step._check import Tensors
from vlakern.ops.ode_step.reference import STAGES, Led, guidance_curve

__all__ = ["BLOCK", "launch", "ode_step_kernel", "options"]

BLOCK = 1024


def options(led: bool) -> dict[str, Any]:
    """What the kernel is compiled with: 8 warps where it leads, 4 would hold 145 registers each."""
    # The kernel fuses where it says tl.fma, as the native kernels do; the compiler must not.
    return {"BLOCK": BLOCK, "num_warps": 8 if led else 4, "enable_fp_fusion": False}


@triton.jit
def ode_step_kernel(
    x_ptr,  # [B, H, A]
    v_ptr,  # [B, H, A], corrected if HAS_LED
    v0_ptr,  # [B, H, A] if HAS_V0
    tau_ptr,  # [B] or [B, H] if PER_POSITION
    dtau_ptr,  # [B]
    frozen_ptr,  # [B, H, A] if HAS_FROZEN
    frozen_len_ptr,  # [B] if HAS_FROZEN
    mask_ptr,  # [B, A] uint8 if HAS_MASK
    x_out_ptr,  # [B, H, A]
    tau_out_ptr,  # as tau
    at_ptr,  # [B, H, A] contiguous if HAS_LED, as the two below
    decided_ptr,  # [B, H, A]
    weights_ptr,  # [B, H, A]
    most_ptr,  # [B] if HAS_LED
    positions,
    slots,
    tiles,
    c0,
    c1,
    c_tau,
    left,  # 1 - tau if HAS_LED
    curve,  # (1 - tau) / (tau r^2) if HAS_LED
    x_stride_b,
    x_stride_h,
    x_stride_a,
    v_stride_b,
    v_stride_h,
    v_stride_a,
    v0_stride_b,
    v0_stride_h,
    v0_stride_a,
    frozen_stride_b,
    frozen_stride_h,
    frozen_stride_a,
    x_out_stride_b,
    x_out_stride_h,
    x_out_stride_a,
    mask_stride_b,
    mask_stride_a,
    tau_stride_b,
    tau_stride_h,
    tau_out_stride_b,
    tau_out_stride_h,
    dtau_stride_b,
    frozen_len_stride_b,
    HAS_V0: tl.constexpr,
    HAS_FROZEN: tl.constexpr,
    HAS_MASK: tl.constexpr,
    PER_POSITION: tl.constexpr,
    HAS_LED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b = (tl.program_id(0) // tiles).to(tl.int64)
    i = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    # A chunk without slots still advances tau.
    columns = slots if slots > 0 else 1
    h = i // columns
    a = i % columns
    inside = h < positions
    element = inside & (a < slots)

    dtau = tl.load(dtau_ptr + b * dtau_stride_b)
    frozen_len = 0
    if HAS_FROZEN:
        frozen_len = tl.load(frozen_len_ptr + b * frozen_len_stride_b)
    is_frozen = h < frozen_len
    x = tl.load(
        x_ptr + b * x_stride_b + h.to(tl.int64) * x_stride_h + a * x_stride_a, mask=element
    ).to(tl.float32)
    y = x
    if HAS_V0:
        at = b * v0_stride_b + h.to(tl.int64) * v0_stride_h + a * v0_stride_a
        v0 = tl.load(v0_ptr + at, mask=element).to(tl.float32)
        y = tl.fma(tl.broadcast_to(dtau * c0, (BLOCK,)), v0, y)
    at = b * v_stride_b + h.to(tl.int64) * v_stride_h + a * v_stride_a
    v = tl.load(v_ptr + at, mask=element).to(tl.float32)
    if HAS_LED:
        most = tl.load(most_ptr + b)
        if most > 0:  # rows that are not led read no more than this
            inside_row = (b * positions + h) * slots + a
            weight = tl.load(weights_ptr + inside_row, mask=element, other=0.0)
            counts = element & (weight > 0)
            decided = tl.load(decided_ptr + inside_row, mask=counts, other=0.0)
            here = tl.load(at_ptr + inside_row, mask=counts, other=0.0)
            ahead = tl.fma(tl.zeros((BLOCK,), tl.float32) + left, v, here)
            led = tl.fma(weight * tl.minimum(most, curve), decided - ahead, v)
            v = tl.where(counts, led, v)
            tl.store(v_ptr + at, v, mask=counts)
    y = tl.fma(tl.broadcast_to(dtau * c1, (BLOCK,)), v, y)
    if HAS_MASK:
        present = tl.load(mask_ptr + b * mask_stride_b + a * mask_stride_a, mask=element)
        y = tl.where(present != 0, y, x)
    y = y.to(x_out_ptr.dtype.element_ty)
    if HAS_FROZEN:
        at = b * frozen_stride_b + h.to(tl.int64) * frozen_stride_h + a * frozen_stride_a
        y = tl.where(is_frozen, tl.load(frozen_ptr + at, mask=element & is_frozen), y)
    at = b * x_out_stride_b + h.to(tl.int64) * x_out_stride_h + a * x_out_stride_a
    tl.store(x_out_ptr + at, y, mask=element)

    if PER_POSITION:
        first = inside & (a == 0)
    else:
        first = i == 0
        h = h * 0
        is_frozen = h < 0
    tau = tl.load(tau_ptr + b * tau_stride_b + h * tau_stride_h, mask=first)
    tau = tl.fma(tl.broadcast_to(dtau, (BLOCK,)), tl.full((BLOCK,), 1.0, tl.float32) * c_tau, tau)
    tau = tl.where(is_frozen, 1.0, tau)
    tl.store(tau_out_ptr + b * tau_out_stride_b + h * tau_out_stride_h, tau, mask=first)


def launch(t: Tensors, stage: str) -> None:
    """Writes ``x_out`` and ``tau_out``; the shapes are checked by the caller."""
    rows, positions, slots = t.x.shape
    per_position = t.tau.ndim == 2
    if rows == 0 or (positions == 0 and per_position):
        return
    tiles = max(1, triton.cdiv(positions * max(slots, 1), BLOCK))
    mask = None
    if t.slot_mask is not None:
        mask = t.slot_mask.expand(rows, slots).view(torch.uint8)
    v0, frozen, frozen_len = _or(t.v0, t.v), _or(t.frozen, t.x), _or(t.frozen_len, t.dtau)
    pointers = (t.x, t.v, v0, t.tau, t.dtau, frozen, frozen_len, _or(mask, t.x), t.x_out, t.tau_out)
    led = t.led if t.led is not None else Led(t.x, t.x, t.x, t.dtau, 1.0)
    pointers += (led.at, led.decided, led.weights, led.most)
    strides = (
        *(t.x.stride() + t.v.stride() + v0.stride() + frozen.stride() + t.x_out.stride()),
        *(mask.stride() if mask is not None else (0, 0)),
        *_time_strides(t.tau),
        *_time_strides(t.tau_out),
        t.dtau.stride(0),
        frozen_len.stride(0),
    )
    flags: dict[str, Any] = {
        "HAS_V0": t.v0 is not None,
        "HAS_FROZEN": t.frozen is not None,
        "HAS_MASK": mask is not None,
        "PER_POSITION": per_position,
        "HAS_LED": t.led is not None,
    }
    numbers = (positions, slots, tiles, *STAGES[stage], led.left, guidance_curve(led.left))
    arguments: list[Any] = [*pointers, *numbers, *strides]
    with torch.cuda.device_of(t.x):
        ode_step_kernel[(rows * tiles,)](*arguments, **flags, **options(t.led is not None))


def _or(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    """An absent argument still needs a pointer; the kernel does not follow it."""
    return stand_in if tensor is None else tensor


def _time_strides(tau: Tensor) -> tuple[int, int]:
    return tau.stride(0), tau.stride(1) if tau.ndim == 2 else 0
