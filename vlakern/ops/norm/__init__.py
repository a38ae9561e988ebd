"""The family of norms in one op: fused residual add, RMSNorm or LayerNorm, adaptive modulation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vlakern.ops._dispatch import Backend, Key, made_by, resolve
from vlakern.ops._refusals import any_of, needs_cpu, needs_triton, never, only_dtypes
from vlakern.ops._torch import eager_function, key_for, runs_directly, wants_gradients
from vlakern.ops.norm._check import MODULATIONS, Tensors, check

__all__ = ["BACKENDS", "BoundNorm", "norm", "norm_out"]

KERNELS = "vlakern.ops.norm._kernels"
FLOATS = only_dtypes("float32", "bfloat16", "float16")
WIDEST_TRITON = 16384  # one program holds a row in registers


def _fits_a_program(key: Key) -> str | None:
    width = dict(key.dims).get("M", 1)
    return f"takes rows of at most {WIDEST_TRITON}, not {width}" if width > WIDEST_TRITON else None


BACKENDS = (
    Backend("triton", made_by(KERNELS, "triton"), any_of(needs_triton, FLOATS, _fits_a_program)),
    Backend("cpu", made_by(KERNELS, "cpu"), any_of(needs_cpu, FLOATS)),
    Backend("reference", made_by(KERNELS, "reference"), never),
)


@dataclass(frozen=True)
class BoundNorm:
    """A checked and resolved ``norm_out`` on fixed memory; calling it does it again."""

    tensors: Tensors  # kept alive, since native kernels hold only their addresses
    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()


def norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    kind: str = "rms",
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    row_group: Tensor | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """``h = x + gate·residual`` and ``y = (w·n(h) + bias)·(1 + scale) + shift``.

    Letters: R rows, M width, B groups of rows. Differentiable in all floating arguments; the
    gradients are summed in an order that depends on the shapes alone, so they have the same bits
    for any number of threads.

    Rounding: all arithmetic is fp32 (fp64 for fp64 inputs). h is rounded once, to x's dtype; y is
    computed from the rounded h, as a module that follows an addition does, and rounded once.

    Args:
        x: ``[R, M]`` fp32, bf16, fp16 (fp64: reference only).
        weight: ``[M]``; None stands for 1. Each argument may have its own floating dtype.
        kind: ``rms``, ``rms_plus_one`` (Gemma: w is 1 plus the weight) or ``layer``.
        bias: ``[M]``, for ``layer`` alone.
        scale, shift, gate: ``[M]`` for all rows, or ``[B, M]``, a row for each group of rows;
            all of one shape.
        residual: ``[R, M]``, added to x before the norm.
        row_group: int32 ``[R]`` of values in ``[0, B)``, the group of every row; None: B equal
            runs of R / B rows.
        eps: added to the mean square or variance.
        backend: ``auto`` or the name of one.

    Returns:
        ``y [R, M]`` and ``h [R, M]`` in x's dtype; h is x itself without a residual.

    Raises:
        InputError: a shape, dtype or device does not fit, or a group is outside ``[0, B)``.
        Unsupported: the named backend refuses the case.
    """
    given = (x, weight, bias, scale, shift, gate, residual, row_group)
    call = _norm
    if runs_directly(given):
        call = _eager if wants_gradients(given) else _forward
    y, h = call(*given, kind, eps, backend)
    return y, x if residual is None else h


def norm_out(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    y_out: Tensor,
    h_out: Tensor | None = None,
    kind: str = "rms",
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    row_group: Tensor | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> BoundNorm:
    """``norm`` into given tensors, without torch.library's overhead and without gradients.

    ``h_out`` is given with a residual alone and may be ``x`` or ``residual``; ``y_out`` may be
    ``x`` or ``residual`` unless that is ``h_out``; no other overlap is allowed. Elements of a row
    must be adjacent in memory, rows may be apart. Returns the call that was done: an engine whose
    buffers stay in place makes it again, without any checks.
    """
    tensors = Tensors(x, weight, bias, scale, shift, gate, residual, row_group, y_out, h_out)
    bound = _bind(tensors, kind, eps, backend)
    bound()
    return bound


def _bind(tensors: Tensors, kind: str, eps: float, backend: str) -> BoundNorm:
    check(tensors, kind, eps)
    kernel: Any = resolve("norm", _key(tensors), backend)
    return BoundNorm(tensors, kernel.forward(tensors, kind, eps))


def _key(t: Tensors) -> Key:
    floats = (t.x, t.weight, t.bias, t.scale, t.shift, t.gate, t.residual)
    dtypes = tuple(one.dtype for one in floats if one is not None)
    return key_for(t.x.device, dtypes, (("M", t.x.shape[-1]),))


def _empty(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    rows = 0 if residual is None else x.shape[0]
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty((rows, *x.shape[1:]), dtype=x.dtype, device=x.device),
    )


def _rows_adjacent(tensor: Tensor | None) -> Tensor | None:
    """Kernels want the elements of a row adjacent; a copy is rare and small beside the layer."""
    if tensor is None or tensor.ndim == 0 or tensor.stride(-1) == 1 or tensor.shape[-1] < 2:
        return tensor
    return tensor.contiguous()


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    row_group: Tensor | None,
    kind: str,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    y, h = _empty(x, residual)
    given = (x, weight, bias, scale, shift, gate, residual, row_group)
    tensors = Tensors(*map(_rows_adjacent, given), y, None if residual is None else h)  # type: ignore
    _bind(tensors, kind, eps, backend)()
    return y, h


_norm = torch.library.custom_op("vlakern::norm", _forward, mutates_args=())


@_norm.register_fake
def _(x, weight, bias, scale, shift, gate, residual, row_group, kind, eps, backend):
    return _empty(x, residual)


def bound_gradients(
    grad_y: Tensor, grad_h: Tensor | None, given: Sequence[Tensor | None], kind: str, eps: float,
    backend: str,
) -> tuple[list[Tensor], Callable[[], None]]:  # fmt: skip
    """Memory for the gradients of x, residual, weight, bias, scale, shift and gate, empty for an
    absent one, and the call that fills it. ``given`` is h and ``norm``'s other tensors."""
    tensors = Tensors(*map(_rows_adjacent, given), grad_y, None)  # type: ignore
    kernel: Any = resolve("norm", _key(tensors), backend)
    grads = _empty_gradients(tensors.x, *given[1:7])
    adjacent = (_rows_adjacent(grad_y), _rows_adjacent(grad_h))
    return grads, partial(kernel.backward, tensors, *adjacent, grads, kind, eps)


def _gradients(
    grad_y: Tensor,
    grad_h: Tensor | None,
    h: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    row_group: Tensor | None,
    kind: str,
    eps: float,
    backend: str,
) -> list[Tensor]:
    """Gradients of x, residual, weight, bias, scale, shift, gate; empty for an absent one."""
    given = (h, weight, bias, scale, shift, gate, residual, row_group)
    grads, fill = bound_gradients(grad_y, grad_h, given, kind, eps, backend)
    fill()
    return grads


def _empty_gradients(h: Tensor, *params: Tensor | None) -> list[Tensor]:
    weight, bias, scale, shift, gate, residual = params
    like = (h, residual, weight, bias, scale, shift, gate)
    return [
        h.new_empty(0) if one is None else torch.empty(one.shape, dtype=one.dtype, device=h.device)
        for one in like
    ]


_norm_backward = torch.library.custom_op("vlakern::norm_backward", _gradients, mutates_args=())


@_norm_backward.register_fake
def _(grad_y, grad_h, h, weight, bias, scale, shift, gate, residual, row_group, kind, eps, backend):
    return _empty_gradients(h, weight, bias, scale, shift, gate, residual)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, scale, shift, gate, residual, row_group, *ctx.settings = inputs
    h = x if residual is None else output[1]
    ctx.save_for_backward(h, weight, bias, scale, shift, gate, residual, row_group)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_y: Tensor | None, grad_h: Tensor | None) -> tuple[Any, ...]:
    h, weight, bias, scale, shift, gate, residual, row_group = ctx.saved_tensors
    given = (weight, bias, scale, shift, gate, residual)
    if residual is None:
        grad_h = None  # h left empty
    if grad_y is None:
        grad_y = torch.zeros_like(h)
    tensors = (grad_y, grad_h, h, *given, row_group)
    call = _gradients if runs_directly(tensors) else _norm_backward
    x, *rest = call(*tensors, *ctx.settings)
    order = ("residual", "weight", "bias", "scale", "shift", "gate")
    by_name = dict(zip(order, rest, strict=True))
    names = ("weight", "bias", *MODULATIONS, "residual")
    grads = [None if one is None else by_name[n] for n, one in zip(names, given, strict=True)]
    return (x, *grads, None, None, None, None)


_norm.register_autograd(_backward, setup_context=_keep)
_eager = eager_function(_forward, _keep, _backward)
