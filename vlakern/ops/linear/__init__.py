"""Matrix products with packed weights and what follows them: bias, activation, gate, residual."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vlakern.errors import InputError, Unsupported
from vlakern.ops._dispatch import Backend, made_by, resolve
from vlakern.ops._refusals import any_of, needs_cpu, needs_triton, never, only_dtypes
from vlakern.ops._torch import key_for, runs_directly
from vlakern.ops.linear._check import (
    Tensors,
    check,
    check_weights,
    facts_of,
    needs_panels,
    needs_rows,
)
from vlakern.ops.linear._kernels import workspace_bytes
from vlakern.ops.linear.packed import ISA, PackedLinear, Unpacked, pack_linear
from vlakern.ops.linear.reference import activate, linear_reference

__all__ = [
    "BACKENDS",
    "BoundLinear",
    "PackedLinear",
    "Unpacked",
    "linear",
    "linear_out",
    "pack_linear",
    "workspace_bytes",
]

KERNELS = "vlakern.ops.linear._kernels"
FLOATS = only_dtypes("float32", "bfloat16")
BACKENDS = (
    Backend("triton", made_by(KERNELS, "triton"), any_of(needs_triton, FLOATS, needs_rows)),
    Backend("cpu", made_by(KERNELS, "cpu"), any_of(needs_cpu, FLOATS, needs_panels)),
    Backend("reference", made_by(KERNELS, "reference"), never),
)


@dataclass(frozen=True)
class BoundLinear:
    """A checked and resolved ``linear_out`` on fixed memory; calling it computes again."""

    tensors: Tensors  # kept alive, since native kernels hold only their addresses
    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()


def linear(
    x: Tensor,
    weight: PackedLinear | Tensor,
    *,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    row_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """``act(row_scale · (x Wᵀ) + bias) + residual``, see ``reference.py``.

    Letters: M rows, K inputs, N weight rows, C output columns: N, or N / 2 of a gated activation.

    Packed weights are for inference: fp32 sums and one rounding at the end, and a row's bits depend
    neither on the other rows nor on the number of threads. Weights as they are, ``[N, K]``, go to
    torch's own matmul and have gradients: the same call serves training.

    Args:
        x: ``[M, K]``, fp32 or bf16. bf16 weights round it to bf16, int8 weights quantise its rows,
            fp8 weights do the one for few rows and the other for many.
        weight: from ``pack_linear``, or ``[N, K]`` with gate rows before up rows.
        bias: ``[N]``, added before the activation; none if one is packed.
        activation: ``none``, ``silu``, ``gelu_erf``, ``gelu_tanh``, ``relu``, or the gated
            ``silu_gate`` and ``gelu_tanh_gate``, which need weights packed with ``gate=True``.
        residual: ``[M, C]``, added last.
        row_scale: ``[M]``, multiplies the product: the scale of a norm that was not yet applied.
        out_dtype: fp32 or bf16; x's by default.
        backend: ``auto`` or the name of one; for weights that are not packed ``auto`` (torch's
            matmul) or ``reference``.

    Returns:
        ``y [M, C]`` in ``out_dtype``.

    Raises:
        InputError: a shape, dtype or device does not fit, or a gradient through packed weights.
        Unsupported: the named backend refuses the case.
    """
    out_dtype = out_dtype or x.dtype
    if isinstance(weight, Tensor):
        rest = (bias, activation, residual, row_scale, out_dtype)
        return _unpacked(x, weight, *rest, backend)
    given = (x, bias, residual, row_scale)
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in given):
        raise InputError(
            "linear: packed weights are for inference and give no gradient; "
            "call it under torch.no_grad() or with the weights as they are"
        )
    check_weights("linear", weight, activation)
    facts = (weight.n, weight.k, weight.kind, weight.gate, weight.has_bias)
    wide = (None if one is None else one.float() for one in (bias, row_scale))
    bias, row_scale = wide
    if residual is not None:
        residual = residual.to(out_dtype)
    rest = (bias, activation, residual, row_scale, out_dtype, backend)
    if runs_directly((x, weight.data, bias, residual, row_scale)):
        return _compute(x, weight, *rest)
    return _linear(x, weight.data, *facts, *rest, weight.isa)


def linear_out(
    x: Tensor,
    weight: PackedLinear,
    *,
    out: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    row_scale: Tensor | None = None,
    workspace: Tensor | None = None,
    backend: str = "auto",
) -> BoundLinear:
    """``linear`` with packed weights into a given tensor, without torch.library's overhead.

    ``residual`` may be ``out``. The columns of x, residual and out must be adjacent, and bias and
    row_scale fp32. ``workspace`` is uint8 of ``workspace_bytes`` elements, which calls that do not
    run at the same time may share; one is made if none is given. Returns the call that was done:
    an engine whose buffers stay in place makes it again, without any checks.
    """
    bound = _bind(
        Tensors(x, weight, bias, residual, row_scale, out), activation, workspace, backend
    )
    bound()
    return bound


def _unpacked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    row_scale: Tensor | None,
    out_dtype: torch.dtype,
    backend: str,
) -> Tensor:
    if backend == "reference":
        return linear_reference(
            x,
            weight,
            bias=bias,
            activation=activation,
            residual=residual,
            row_scale=row_scale,
            out_dtype=out_dtype,
        )
    if backend != "auto":
        raise Unsupported(
            f"backend {backend} of linear refuses: takes packed weights; use pack_linear"
        )
    if weight.ndim != 2 or x.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise InputError(
            "linear: x must be [M, K] and weight [N, K], "
            f"got {list(x.shape)} and {list(weight.shape)}"
        )
    weight = weight.to(x.dtype)
    if row_scale is None:
        z = functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
    else:
        z = functional.linear(x, weight) * row_scale.to(x.dtype)[:, None]
        z = z if bias is None else z + bias.to(x.dtype)
    y = activate(z, activation).to(out_dtype)
    return y if residual is None else y + residual.to(out_dtype)


@torch.library.custom_op("vlakern::linear", mutates_args=())
def _linear(
    x: Tensor,
    data: Tensor,
    n: int,
    k: int,
    kind: str,
    gate: bool,
    has_bias: bool,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    row_scale: Tensor | None,
    out_dtype: torch.dtype,
    backend: str,
    isa: str = ISA,
) -> Tensor:
    weights = PackedLinear(data, n, k, kind, gate, has_bias, isa=isa)
    return _compute(x, weights, bias, activation, residual, row_scale, out_dtype, backend)


def _compute(
    x: Tensor,
    weights: PackedLinear,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    row_scale: Tensor | None,
    out_dtype: torch.dtype,
    backend: str,
) -> Tensor:
    out = x.new_empty((x.shape[0], weights.columns), dtype=out_dtype)
    residual = None if residual is None else _adjacent(residual)
    bias, row_scale = (None if one is None else one.contiguous() for one in (bias, row_scale))
    tensors = Tensors(_adjacent(x), weights, bias, residual, row_scale, out)
    _bind(tensors, activation, None, backend)()
    return out


def _adjacent(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim == 2 and tensor.stride(1) == 1 else tensor.contiguous()


def _bind(tensors: Tensors, activation: str, workspace: Tensor | None, backend: str) -> BoundLinear:
    check(tensors, activation)
    key = key_for(
        tensors.x.device,
        (tensors.x.dtype, tensors.out.dtype),
        flags=facts_of(tensors.weights),
    )
    return BoundLinear(tensors, resolve("linear", key, backend)(tensors, activation, workspace))


@_linear.register_fake
def _(
    x,
    data,
    n,
    k,
    kind,
    gate,
    has_bias,
    bias,
    activation,
    residual,
    row_scale,
    out_dtype,
    backend,
    isa=ISA,
):
    return x.new_empty((x.shape[0], n // 2 if gate else n), dtype=out_dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


def _backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
    raise InputError("linear: packed weights are for inference and give no gradient")


_linear.register_autograd(_backward, setup_context=_keep)
