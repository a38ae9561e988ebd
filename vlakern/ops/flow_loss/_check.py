"""The arguments of ``flow_mix`` and ``flow_loss``, and the one check of them, at the border."""

from typing import NamedTuple

import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.ops.flow_loss.reference import LAWS, Law, compute_dtype

__all__ = ["Loss", "Mix", "Source", "check_loss", "check_mix"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LONGEST = 2**33  # elements of a row: blocks are counted in 32 bits


class Source(NamedTuple):
    """Where noise and actions come from. Letters: R rows, B samples, H positions, A slots."""

    action: Tensor  # [B, H, A]
    seed: int
    rows: Tensor | None  # [R] int64
    noise: Tensor | None  # [R, H, A]
    slots: Tensor | None  # [B, A]


class Mix(NamedTuple):
    """One ``flow_mix`` call."""

    source: Source
    tau: Tensor | None  # [R] or [R, H]
    law: Law
    x: Tensor  # [R, H, A]
    tau_out: Tensor  # as tau, [R] without it


class Loss(NamedTuple):
    """One ``flow_loss`` call. Letter: G groups."""

    source: Source
    velocity: Tensor  # [R, H, A]
    mask: Tensor | None  # [B, H, A]
    group: Tensor | None  # [B] int32
    weights: Tensor | None  # [G]
    loss: Tensor  # [1]
    coefficients: Tensor  # [G]


def check_mix(t: Mix) -> None:
    """Raises InputError for the first argument that does not fit the others."""
    op, action = "flow_mix", t.source.action
    count = t.x.shape[0] if t.x.ndim else -1
    _check_source(op, t.source, count)
    if t.law.kind not in LAWS:
        _fail(op, "law", f"one of {', '.join(LAWS)}", repr(t.law.kind))
    if not t.law.alpha > 0 or not 0 < t.law.s <= 1:
        _fail(op, "law", "alpha > 0 and 0 < s <= 1", t.law)
    compute = compute_dtype(action)
    _dtype(op, "x_out", t.x, compute if compute == torch.float64 else None)
    _shape(op, "x_out", t.x, "R, H, A", (count, *action.shape[1:]))
    if t.tau is not None and tuple(t.tau.shape) not in ((count,), (count, action.shape[1])):
        expected = f"[R] = [{count}] or [R, H] = [{count}, {action.shape[1]}]"
        _fail(op, "tau", expected, list(t.tau.shape))
    for name, one in (("tau", t.tau), ("tau_out", t.tau_out)):
        _dtype(op, name, one, compute)
    like = (count,) if t.tau is None else tuple(t.tau.shape)
    _shape(op, "tau_out", t.tau_out, "as tau", like)
    _devices(op, action, {"tau": t.tau, "x_out": t.x, "tau_out": t.tau_out})


def check_loss(t: Loss) -> None:
    """Raises InputError for the first argument that does not fit the others."""
    op, action = "flow_loss", t.source.action
    count = t.velocity.shape[0] if t.velocity.ndim else -1
    _check_source(op, t.source, count)
    compute = compute_dtype(action)
    _dtype(op, "velocity", t.velocity, compute if compute == torch.float64 else None)
    _shape(op, "velocity", t.velocity, "R, H, A", (count, *action.shape[1:]))
    _shape(op, "mask", t.mask, "B, H, A", tuple(action.shape))
    if t.mask is not None and t.mask.dtype not in (compute, torch.bool, torch.uint8):
        _fail(op, "mask", f"{compute}, torch.bool or torch.uint8", t.mask.dtype)
    groups = t.coefficients.shape[0] if t.coefficients.ndim else 0
    if groups < 1:
        _fail(op, "groups", "at least 1", groups)
    if t.group is None and groups != 1:
        raise InputError(f"flow_loss: {groups} groups need group, the embodiment of each sample")
    _shape(op, "group", t.group, "B", (len(action),))
    if t.group is not None and t.group.dtype != torch.int32:
        _fail(op, "group", "torch.int32", t.group.dtype)
    _shape(op, "weights", t.weights, "G", (groups,))
    _shape(op, "loss_out", t.loss, "1", (1,))
    _shape(op, "coefficients_out", t.coefficients, "G", (groups,))
    names = ("weights", "loss", "coefficients")
    for name in names:
        _dtype(op, name, getattr(t, name), compute)
    given = ("velocity", "mask", "group", *names)
    _devices(op, action, {name: getattr(t, name) for name in given})


def _check_source(op: str, t: Source, count: int) -> None:
    if t.action.ndim != 3:
        _fail(op, "action", "[B, H, A]", list(t.action.shape))
    if t.action.dtype not in (torch.float32, torch.float64):
        _fail(op, "action", "torch.float32 or torch.float64", t.action.dtype)
    samples, positions, slots = t.action.shape
    if count < 0 or count % max(1, samples) or (samples == 0 and count):
        raise InputError(f"{op}: {count} rows are not a multiple of {samples} samples")
    if positions * slots >= LONGEST:
        _fail(op, "action", f"of less than {LONGEST} elements a row", positions * slots)
    if not 0 <= t.seed < 2**63:
        _fail(op, "seed", "0 to 2^63 - 1", t.seed)
    if t.noise is not None and t.rows is not None:
        raise InputError(f"{op}: rows address drawn noise, and noise is given")
    _dtype(op, "noise", t.noise, t.action.dtype)
    _shape(op, "noise", t.noise, "R, H, A", (count, positions, slots))
    _dtype(op, "rows", t.rows, torch.int64)
    _shape(op, "rows", t.rows, "R", (count,))
    _dtype(op, "slots", t.slots, t.action.dtype)
    _shape(op, "slots", t.slots, "B, A", (samples, slots))
    _devices(op, t.action, {"noise": t.noise, "rows": t.rows, "slots": t.slots})


def _fail(op: str, name: str, expected: str, found: object) -> None:
    raise InputError(f"{op}: {name} must be {expected}, got {found}")


def _shape(op: str, name: str, one: Tensor | None, letters: str, shape: tuple[int, ...]) -> None:
    if one is not None and tuple(one.shape) != shape:
        _fail(op, name, f"[{letters}] = {list(shape)}", list(one.shape))


def _dtype(op: str, name: str, one: Tensor | None, dtype: torch.dtype | None) -> None:
    """None stands for any of the lower precisions."""
    allowed = FLOATS if dtype is None else (dtype,)
    if one is not None and one.dtype not in allowed:
        _fail(op, name, " or ".join(str(a) for a in allowed), one.dtype)


def _devices(op: str, action: Tensor, others: dict[str, Tensor | None]) -> None:
    for name, one in others.items():
        if one is not None and one.device != action.device:
            _fail(op, name, f"on the device of action, {action.device}", f"one on {one.device}")
