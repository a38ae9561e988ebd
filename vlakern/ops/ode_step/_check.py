"""The arguments of one ``ode_step`` call, and the one check of them, at the border."""

from typing import NamedTuple

import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.ops.ode_step.reference import STAGES, Led, compute_dtype

__all__ = ["Tensors", "check"]

STATES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Tensors(NamedTuple):
    """What every backend takes. Letters: B rows, H positions, A slots."""

    x: Tensor  # [B, H, A]
    v: Tensor  # [B, H, A]
    v0: Tensor | None  # [B, H, A]
    tau: Tensor  # [B] or [B, H]
    dtau: Tensor  # [B]
    frozen: Tensor | None  # [B, H, A]
    frozen_len: Tensor | None  # [B]
    slot_mask: Tensor | None  # [A] or [B, A]
    x_out: Tensor  # [B, H, A]
    tau_out: Tensor  # as tau
    led: Led | None = None


def check(t: Tensors, stage: str) -> None:
    """Raises InputError for the first argument that does not fit the others."""
    if stage not in STAGES:
        _fail("stage", f"one of {', '.join(STAGES)}", repr(stage))
    if t.x.ndim != 3:
        _fail("x", "[B, H, A]", list(t.x.shape))
    rows, positions, _ = shape = tuple(t.x.shape)
    _dtype("x", t.x, *STATES)
    _dtype("v", t.v, *STATES)
    _shape("v", t.v, "B, H, A", shape)
    if (t.v0 is not None) != (STAGES[stage].c0 != 0):
        verb = "takes" if t.v0 is None else "takes no"
        raise InputError(f"ode_step: stage {stage!r} {verb} v0, the first-stage velocity")
    if t.v0 is not None:
        _dtype("v0", t.v0, t.v.dtype)
        _shape("v0", t.v0, "B, H, A", shape)
    _dtype("tau", t.tau, compute_dtype(t.x))
    _dtype("dtau", t.dtau, compute_dtype(t.x))
    _shape("dtau", t.dtau, "B", (rows,))
    if tuple(t.tau.shape) not in ((rows,), (rows, positions)):
        _fail("tau", f"[B] = [{rows}] or [B, H] = [{rows}, {positions}]", list(t.tau.shape))
    _check_frozen(t.x, t.frozen, t.frozen_len)
    if t.slot_mask is not None:
        _check_mask(t.slot_mask, rows, shape[2])
    if t.led is not None:
        _check_led(t, t.led)
    for name, output, like in (("x_out", t.x_out, t.x), ("tau_out", t.tau_out, t.tau)):
        _dtype(name, output, like.dtype)
        _shape(name, output, "as its input", tuple(like.shape))
    _check_devices(t)


def _fail(name: str, expected: str, found: object) -> None:
    raise InputError(f"ode_step: {name} must be {expected}, got {found}")


def _shape(name: str, tensor: Tensor, letters: str, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        _fail(name, f"[{letters}] = {list(shape)}", list(tensor.shape))


def _dtype(name: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    if tensor.dtype not in allowed:
        _fail(name, " or ".join(str(one) for one in allowed), tensor.dtype)


def _check_frozen(x: Tensor, frozen: Tensor | None, frozen_len: Tensor | None) -> None:
    if (frozen is None) != (frozen_len is None):
        raise InputError("ode_step: frozen and frozen_len must be given together")
    if frozen is not None and frozen_len is not None:
        _dtype("frozen", frozen, x.dtype)
        _shape("frozen", frozen, "B, H, A", tuple(x.shape))
        _dtype("frozen_len", frozen_len, torch.int32)
        _shape("frozen_len", frozen_len, "B", (x.shape[0],))


def _check_mask(slot_mask: Tensor, rows: int, slots: int) -> None:
    _dtype("slot_mask", slot_mask, torch.bool, torch.uint8)
    if tuple(slot_mask.shape) not in ((slots,), (rows, slots)):
        expected = f"[A] = [{slots}] or [B, A] = [{rows}, {slots}]"
        _fail("slot_mask", expected, list(slot_mask.shape))


def _check_led(t: Tensors, led: Led) -> None:
    for name, tensor in (("x", t.x), ("v", t.v), *led._asdict().items()):
        if not isinstance(tensor, Tensor):
            continue
        _dtype(name, tensor, torch.float32)
        letters, shape = ("B", t.x.shape[:1]) if name == "most" else ("B, H, A", t.x.shape)
        _shape(name, tensor, letters, tuple(shape))
        if name not in ("x", "v") and not tensor.is_contiguous():
            _fail(name, "contiguous", f"strides {list(tensor.stride())}")
    if not 0 < led.left <= 1:
        _fail("left", "above 0 and at most 1", led.left)


def _check_devices(t: Tensors) -> None:
    led = {} if t.led is None else t.led._asdict()
    for name, tensor in {**t._asdict(), **led}.items():
        if isinstance(tensor, Tensor) and tensor.device != t.x.device:
            _fail(name, f"on x's device {t.x.device}", f"one on {tensor.device}")
