"""Noisy actions to tokens: the action encoder with the flow time folded into a bias."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.ops._dispatch import Backend, made_by, resolve
from vlakern.ops._refusals import any_of, needs_cpu, needs_triton, never, only_dtypes
from vlakern.ops._torch import key_for, runs_directly, wants_gradients
from vlakern.ops.action_embed._kernels import Tensors
from vlakern.ops.action_embed.reference import action_embed_reference, fold_action_encoder
from vlakern.ops.linear._check import (
    FLOATS,
    check_weights,
    facts_of,
    needs_panels,
    needs_rows,
)
from vlakern.ops.linear.packed import ISA, PackedLinear

__all__ = ["BACKENDS", "BoundEmbed", "action_embed", "action_embed_out", "fold_action_encoder"]

KERNELS = "vlakern.ops.action_embed._kernels"
DTYPES = only_dtypes("float32", "bfloat16")
BACKENDS = (
    Backend("triton", made_by(KERNELS, "triton"), any_of(needs_triton, DTYPES, needs_rows)),
    Backend("cpu", made_by(KERNELS, "cpu"), any_of(needs_cpu, DTYPES, needs_panels)),
    Backend("reference", made_by(KERNELS, "reference"), never),
)


@dataclass(frozen=True)
class BoundEmbed:
    """A checked and resolved ``action_embed_out`` on fixed memory; calling it computes again."""

    tensors: Tensors  # kept alive, since native kernels hold only their addresses
    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()


def action_embed(
    x: Tensor,
    w_in: PackedLinear | Tensor,
    time: Tensor,
    w_out: PackedLinear | Tensor | None = None,
    *,
    b_out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """``w_out·silu(w_in·x + time) + b_out``, or ``w_in·x + time`` without ``w_out``.

    Letters: R rows, H positions, N = R · H, A slots, M width. Packed weights are for inference;
    weights as they are go through torch and have gradients.

    Args:
        x: noisy actions ``[R, H, A]`` or ``[N, A]``, fp32 or bf16.
        w_in: ``[M, A]``, see :func:`fold_action_encoder`, or that packed without a bias by
            ``pack_linear`` as ``bf16`` or ``fp32``.
        time: t of the solver's step ``[M]``, or of each row ``[R, 1, M]`` or position
            ``[R, H, M]`` or ``[N, M]``; fp32. The bias of a single projection.
        w_out: ``[M, M]``, or packed with its bias; packed if ``w_in`` is.
        b_out: ``[M]``, of weights that are not packed.
        out_dtype: fp32 or bf16; x's by default.
        backend: ``auto`` or the name of one.

    Returns:
        Tokens ``[N, M]``.

    Raises:
        InputError: a shape, dtype or device does not fit, or a gradient through packed weights.
        Unsupported: the named backend refuses the case.
    """
    out_dtype = out_dtype or x.dtype
    if x.ndim not in (2, 3):
        raise InputError(f"action_embed: x must be [R, H, A] or [N, A], got {list(x.shape)}")
    rows, width = x.shape[:-1], w_in.shape[0] if isinstance(w_in, Tensor) else w_in.n
    if time.ndim > 1:
        time = _each_row(time, (*rows, width))
    x = x.flatten(0, -2)
    if not isinstance(w_in, PackedLinear):
        if isinstance(w_out, PackedLinear):
            raise InputError("action_embed: w_in and w_out must both be packed, or neither")
        return action_embed_reference(x, w_in, time, w_out, b_out, out_dtype)
    if isinstance(w_out, Tensor) or b_out is not None:
        raise InputError("action_embed: with packed weights w_out and its bias are packed, too")
    if wants_gradients((x, time)):
        raise InputError(
            "action_embed: packed weights are for inference and give no gradient; "
            "call it under torch.no_grad() or with the weights as they are"
        )
    _check_weights(w_in, w_out)
    time = time.to(out_dtype if time.ndim > 1 and w_out is None else torch.float32)
    first = (w_in.data, w_in.n, w_in.k, w_in.kind)
    last: tuple[Any, ...] = (None, 0, 0, "", False)
    if w_out is not None:
        last = (w_out.data, w_out.n, w_out.k, w_out.kind, w_out.has_bias)
    rest: tuple[Any, ...] = (*last, out_dtype, backend, w_in.isa)
    call = _embed if runs_directly((x, time)) else _action_embed
    return call(x, *first, time, *rest)


def action_embed_out(
    x: Tensor,
    w_in: PackedLinear,
    time: Tensor,
    w_out: PackedLinear | None = None,
    *,
    out: Tensor,
    backend: str = "auto",
) -> BoundEmbed:
    """``action_embed`` with packed weights into a given tensor, without gradients.

    ``x`` is ``[N, A]`` and ``time`` ``[M]`` fp32, a row of the step table, or ``[N, M]`` fp32 (of
    out's dtype without ``w_out``); columns must be adjacent. Returns the call that was done: an
    engine binds one for each step and makes them again without any checks.
    """
    bound = _bind(Tensors(x, w_in, time, w_out, out), backend)
    bound()
    return bound


def _each_row(time: Tensor, shape: tuple[int, ...]) -> Tensor:
    if time.ndim == len(shape) and all(
        have in (1, want) for have, want in zip(time.shape, shape, strict=True)
    ):
        return time.expand(shape).reshape(-1, shape[-1])
    rows = 1
    for size in shape[:-1]:
        rows *= size
    if tuple(time.shape) != (rows, shape[-1]):
        raise InputError(
            f"action_embed: time must be [M] = [{shape[-1]}] or fit {list(shape)}, "
            f"got {list(time.shape)}"
        )
    return time


def _check_weights(w_in: PackedLinear, w_out: PackedLinear | None) -> None:
    for one in (w_in, w_out):
        if one is not None:
            check_weights("action_embed", one, "none")
    if w_out is not None and w_out.isa != w_in.isa:
        raise InputError(
            f"action_embed: w_out must be packed for {w_in.isa} as w_in is, got {w_out.isa}"
        )
    if w_in.has_bias:
        raise InputError("action_embed: w_in holds a bias; fold it into time")


def _bind(t: Tensors, backend: str) -> BoundEmbed:
    _check(t)
    facts = facts_of(t.w_in, t.w_out)
    key = key_for(t.x.device, (t.x.dtype, t.y.dtype), flags=facts)
    return BoundEmbed(t, resolve("action_embed", key, backend)(t))


def _check(t: Tensors) -> None:
    """Raises InputError for the first argument that does not fit the others."""
    _check_weights(t.w_in, t.w_out)
    for name, weights in (("w_in", t.w_in), ("w_out", t.w_out)):
        if weights is not None and weights.kind not in ("bf16", "fp32"):
            _fail(name, "packed as bf16 or fp32", weights.kind)
    width = t.w_in.n
    if t.x.ndim != 2 or t.x.shape[1] != t.w_in.k:
        _fail("x", f"[N, A] with A = {t.w_in.k}", list(t.x.shape))
    rows = t.x.shape[0]
    if t.w_out is not None and t.w_out.k != width:
        _fail("w_out", f"[M, M] with M = {width}", [t.w_out.n, t.w_out.k])
    columns = width if t.w_out is None else t.w_out.n
    if tuple(t.y.shape) != (rows, columns):
        _fail("out", f"[N, M] = [{rows}, {columns}]", list(t.y.shape))
    if tuple(t.time.shape) not in ((width,), (rows, width)):
        _fail("time", f"[M] = [{width}] or [N, M] = [{rows}, {width}]", list(t.time.shape))
    dtype = t.y.dtype if t.time.ndim == 2 and t.w_out is None else torch.float32
    if t.time.dtype != dtype:
        _fail("time", str(dtype), t.time.dtype)
    for name, one in (("x", t.x), ("out", t.y)):
        if one.dtype not in FLOATS:
            _fail(name, " or ".join(map(str, FLOATS)), one.dtype)
    for name, one in (("time", t.time), ("out", t.y), ("w_in", t.w_in.data)):
        if one.device != t.x.device:
            _fail(name, f"on x's device {t.x.device}", f"one on {one.device}")


def _fail(name: str, expected: str, found: object) -> None:
    raise InputError(f"action_embed: {name} must be {expected}, got {found}")


def _embed(
    x: Tensor,
    w_in: Tensor,
    n: int,
    k: int,
    kind: str,
    time: Tensor,
    w_out: Tensor | None,
    out_n: int,
    out_k: int,
    out_kind: str,
    out_bias: bool,
    out_dtype: torch.dtype,
    backend: str,
    isa: str = ISA,
) -> Tensor:
    first = PackedLinear(w_in, n, k, kind, isa=isa)
    last = None
    if w_out is not None:
        last = PackedLinear(w_out, out_n, out_k, out_kind, False, out_bias, isa=isa)
    y = _empty(x, n, w_out, out_n, out_dtype)
    _bind(Tensors(_adjacent(x), first, time.contiguous(), last, y), backend)()
    return y


def _adjacent(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _empty(x: Tensor, n: int, w_out: Tensor | None, out_n: int, dtype: torch.dtype) -> Tensor:
    return x.new_empty((x.shape[0], n if w_out is None else out_n), dtype=dtype)


_action_embed = torch.library.custom_op("vlakern::action_embed", _embed, mutates_args=())


@_action_embed.register_fake
def _(x, w_in, n, k, kind, time, w_out, out_n, out_k, out_kind, out_bias, out_dtype, *rest):
    return _empty(x, n, w_out, out_n, out_dtype)


def _backward(ctx: Any, grad: Tensor) -> None:
    raise InputError("action_embed: packed weights are for inference and give no gradient")


_action_embed.register_autograd(_backward)
