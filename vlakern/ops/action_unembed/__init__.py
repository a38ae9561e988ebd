"""Tokens to velocities: the action decoder, with the action expert's final norm before it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.ops._dispatch import Backend, made_by, resolve
from vlakern.ops._refusals import any_of, needs_cpu, needs_triton, never, only_dtypes
from vlakern.ops._torch import key_for, runs_directly, wants_gradients
from vlakern.ops.action_unembed._kernels import FinalNorm, Tensors
from vlakern.ops.action_unembed.reference import action_unembed_reference
from vlakern.ops.linear._check import (
    FLOATS,
    check_weights,
    facts_of,
    needs_panels,
    needs_rows,
)
from vlakern.ops.linear.packed import ISA, PackedLinear
from vlakern.ops.norm.reference import KINDS

__all__ = ["BACKENDS", "BoundUnembed", "FinalNorm", "action_unembed", "action_unembed_out"]

KERNELS = "vlakern.ops.action_unembed._kernels"
DTYPES = only_dtypes("float32", "bfloat16")
BACKENDS = (
    Backend("triton", made_by(KERNELS, "triton"), any_of(needs_triton, DTYPES, needs_rows)),
    Backend("cpu", made_by(KERNELS, "cpu"), any_of(needs_cpu, DTYPES, needs_panels)),
    Backend("reference", made_by(KERNELS, "reference"), never),
)


@dataclass(frozen=True)
class BoundUnembed:
    """A checked and resolved ``action_unembed_out`` on fixed memory; calling it computes again."""

    tensors: Tensors  # kept alive, since native kernels hold only their addresses
    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()


def action_unembed(
    h: Tensor,
    w_hidden: PackedLinear | Tensor | None,
    w_out: PackedLinear | Tensor,
    *,
    b_hidden: Tensor | None = None,
    b_out: Tensor | None = None,
    norm: FinalNorm | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """``w_out·relu(w_hidden·n(h) + b_hidden) + b_out``; without ``w_hidden`` one projection.

    Letters: N rows, M width, F hidden columns, A slots. Packed weights are for inference; weights
    as they are go through torch and have gradients.

    Args:
        h: tokens ``[N, M]``, fp32 or bf16.
        w_hidden: ``[F, M]``, or packed with its bias as ``bf16`` or ``fp32``; None: one projection.
        w_out: ``[A, F]`` or ``[A, M]``, or packed with its bias; packed if ``w_hidden`` is.
        b_hidden, b_out: ``[F]`` and ``[A]``, of weights that are not packed.
        norm: the final norm, see :class:`FinalNorm` and ``vlakern.ops.norm``; its result is rounded
            to h's dtype.
        out_dtype: fp32 or bf16; h's by default.
        backend: ``auto`` or the name of one.

    Returns:
        Velocities ``[N, A]``.

    Raises:
        InputError: a shape, dtype or device does not fit, or a gradient through packed weights.
        Unsupported: the named backend refuses the case.
    """
    out_dtype = out_dtype or h.dtype
    if not isinstance(w_out, PackedLinear):
        if isinstance(w_hidden, PackedLinear):
            raise InputError("action_unembed: w_hidden and w_out must both be packed, or neither")
        weights = (w_hidden, b_hidden, w_out, b_out)
        options = norm.options if norm else {}
        return action_unembed_reference(h, *weights, **options, out_dtype=out_dtype)
    if isinstance(w_hidden, Tensor) or b_hidden is not None or b_out is not None:
        raise InputError("action_unembed: with packed weights all weights and biases are packed")
    if wants_gradients((h,)):
        raise InputError(
            "action_unembed: packed weights are for inference and give no gradient; "
            "call it under torch.no_grad() or with the weights as they are"
        )
    _check_weights(w_hidden, w_out)
    first = (0, 0, "", False)
    if w_hidden is not None:
        first = (w_hidden.n, w_hidden.k, w_hidden.kind, w_hidden.has_bias)
    last = (w_out.data, w_out.n, w_out.k, w_out.kind, w_out.has_bias)
    final = norm or FinalNorm("")
    call = _unembed if runs_directly((h,)) else _action_unembed
    hidden = None if w_hidden is None else w_hidden.data
    rest: tuple[Any, ...] = (*first, *last, *final.parts, out_dtype, backend, w_out.isa)
    return call(h, hidden, *rest)


def action_unembed_out(
    h: Tensor,
    w_hidden: PackedLinear | None,
    w_out: PackedLinear,
    *,
    out: Tensor,
    norm: FinalNorm | None = None,
    backend: str = "auto",
) -> BoundUnembed:
    """``action_unembed`` with packed weights into a given tensor ``[N, A]``, without gradients.

    Columns must be adjacent. Returns the call that was done, to be made again without any checks.
    """
    bound = _bind(Tensors(h, norm, w_hidden, w_out, out), backend)
    bound()
    return bound


def _check_weights(w_hidden: PackedLinear | None, w_out: PackedLinear) -> None:
    for one in (w_hidden, w_out):
        if one is not None:
            check_weights("action_unembed", one, "none")
    if w_hidden is not None and w_hidden.isa != w_out.isa:
        raise InputError(
            f"action_unembed: w_hidden must be packed for {w_out.isa} as w_out is, "
            f"got {w_hidden.isa}"
        )


def _bind(t: Tensors, backend: str) -> BoundUnembed:
    _check(t)
    key = key_for(t.h.device, (t.h.dtype, t.y.dtype), flags=facts_of(t.w_hidden, t.w_out))
    return BoundUnembed(t, resolve("action_unembed", key, backend)(t))


def _check(t: Tensors) -> None:
    """Raises InputError for the first argument that does not fit the others."""
    _check_weights(t.w_hidden, t.w_out)
    for name, weights in (("w_hidden", t.w_hidden), ("w_out", t.w_out)):
        if weights is not None and weights.kind not in ("bf16", "fp32"):
            _fail(name, "packed as bf16 or fp32", weights.kind)
    width = t.w_out.k if t.w_hidden is None else t.w_hidden.k
    if t.h.ndim != 2 or t.h.shape[1] != width:
        _fail("h", f"[N, M] with M = {width}", list(t.h.shape))
    if t.w_hidden is not None and t.w_hidden.n != t.w_out.k:
        _fail("w_out", f"[A, F] with F = {t.w_hidden.n}", [t.w_out.n, t.w_out.k])
    if tuple(t.y.shape) != (t.h.shape[0], t.w_out.n):
        _fail("out", f"[N, A] = [{t.h.shape[0]}, {t.w_out.n}]", list(t.y.shape))
    for name, one in (("h", t.h), ("out", t.y)):
        if one.dtype not in FLOATS:
            _fail(name, " or ".join(map(str, FLOATS)), one.dtype)
    for name, one in (("out", t.y), ("w_out", t.w_out.data)):
        if one.device != t.h.device:
            _fail(name, f"on h's device {t.h.device}", f"one on {one.device}")
    if t.norm is not None:
        _check_norm(t.norm, t.h)


def _check_norm(norm: FinalNorm, h: Tensor) -> None:
    if norm.kind not in KINDS:
        _fail("norm.kind", f"one of {', '.join(KINDS)}", repr(norm.kind))
    for name in ("weight", "bias", "scale", "shift"):
        one = getattr(norm, name)
        if one is not None and tuple(one.shape) != (h.shape[1],):
            _fail(f"norm.{name}", f"[M] = [{h.shape[1]}]", list(one.shape))
        if one is not None and one.device != h.device:
            _fail(f"norm.{name}", f"on h's device {h.device}", f"one on {one.device}")


def _fail(name: str, expected: str, found: object) -> None:
    raise InputError(f"action_unembed: {name} must be {expected}, got {found}")


def _unembed(
    h: Tensor,
    w_hidden: Tensor | None,
    hidden_n: int,
    hidden_k: int,
    hidden_kind: str,
    hidden_bias: bool,
    w_out: Tensor,
    n: int,
    k: int,
    kind: str,
    has_bias: bool,
    norm: str,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    out_dtype: torch.dtype,
    backend: str,
    isa: str = ISA,
) -> Tensor:
    first, facts = None, (hidden_n, hidden_k, hidden_kind, False, hidden_bias)
    if w_hidden is not None:
        first = PackedLinear(w_hidden, *facts, isa=isa)
    last = PackedLinear(w_out, n, k, kind, False, has_bias, isa=isa)
    final = FinalNorm(norm, norm_weight, norm_bias, scale, shift, eps) if norm else None
    y = h.new_empty((h.shape[0], n), dtype=out_dtype)
    adjacent = h if h.stride(-1) == 1 else h.contiguous()
    _bind(Tensors(adjacent, final, first, last, y), backend)()
    return y


_action_unembed = torch.library.custom_op("vlakern::action_unembed", _unembed, mutates_args=())


@_action_unembed.register_fake
def _(h, w_hidden, hidden_n, hidden_k, hidden_kind, hidden_bias, w_out, n, *rest):
    dtype = next(one for one in rest if isinstance(one, torch.dtype))
    return h.new_empty((h.shape[0], n), dtype=dtype)


def _backward(ctx: Any, grad: Tensor) -> None:
    raise InputError("action_unembed: packed weights are for inference and give no gradient")


_action_unembed.register_autograd(_backward)
