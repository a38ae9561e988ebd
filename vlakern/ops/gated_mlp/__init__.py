"""The gated feed-forward layer: gate and up in one pass, activation, down, residual."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.ops._dispatch import Backend, made_by, resolve
from vlakern.ops._refusals import any_of, needs_cpu, needs_triton, never, only_dtypes
from vlakern.ops._torch import key_for
from vlakern.ops.gated_mlp._kernels import Tensors, mlp_workspace_bytes
from vlakern.ops.linear import linear
from vlakern.ops.linear._check import (
    FLOATS,
    check_weights,
    facts_of,
    needs_panels,
    needs_rows,
)
from vlakern.ops.linear.packed import ISA, PackedLinear
from vlakern.ops.linear.reference import GATED

__all__ = ["BACKENDS", "BoundGatedMlp", "gated_mlp", "gated_mlp_out", "mlp_workspace_bytes"]

KERNELS = "vlakern.ops.gated_mlp._kernels"
DTYPES = only_dtypes("float32", "bfloat16")
BACKENDS = (
    Backend("triton", made_by(KERNELS, "triton"), any_of(needs_triton, DTYPES, needs_rows)),
    Backend("cpu", made_by(KERNELS, "cpu"), any_of(needs_cpu, DTYPES, needs_panels)),
    Backend("reference", made_by(KERNELS, "reference"), never),
)


@dataclass(frozen=True)
class BoundGatedMlp:
    """A checked and resolved ``gated_mlp_out`` on fixed memory; calling it computes again."""

    tensors: Tensors  # kept alive, since native kernels hold only their addresses
    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()


def gated_mlp(
    x: Tensor,
    gate_up: PackedLinear | Tensor,
    down: PackedLinear | Tensor,
    *,
    activation: str,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """``(act(x Wgᵀ) · (x Wuᵀ)) Wdᵀ + residual``, see ``reference.py``; biases are packed.

    Letters: M rows, K inputs, F hidden columns, N outputs.

    Args:
        x: ``[M, K]``, fp32 or bf16.
        gate_up: from ``pack_linear(weight [2 F, K], gate=True)``; or ``[2 F, K]`` itself, gate rows
            before up rows, which goes to torch's matmul and has gradients.
        down: from ``pack_linear(weight [N, F])``, or ``[N, F]`` itself; packed if gate_up is.
        activation: ``silu_gate`` or ``gelu_tanh_gate``.
        residual: ``[M, N]``, added last.
        out_dtype: fp32 or bf16; x's by default.
        backend: ``auto`` or the name of one.

    Returns:
        ``y [M, N]`` in ``out_dtype``.

    Raises:
        InputError: a shape, dtype or device does not fit, or a gradient through packed weights.
        Unsupported: the named backend refuses the case.
    """
    out_dtype = out_dtype or x.dtype
    if isinstance(gate_up, Tensor) and isinstance(down, Tensor):
        hidden = linear(x, gate_up, activation=_gated(activation), backend=backend)
        return linear(hidden, down, residual=residual, out_dtype=out_dtype, backend=backend)
    if isinstance(gate_up, Tensor) or isinstance(down, Tensor):
        raise InputError("gated_mlp: gate_up and down must both be packed, or neither")
    given = (x, residual)
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in given):
        raise InputError(
            "gated_mlp: packed weights are for inference and give no gradient; "
            "call it under torch.no_grad() or with the weights as they are"
        )
    check_weights("gated_mlp", gate_up, _gated(activation))
    check_weights("gated_mlp", down, "none")
    _check_isas(gate_up, down)
    if residual is not None:
        residual = residual.to(out_dtype)
    first = (gate_up.n, gate_up.k, gate_up.kind, gate_up.has_bias)
    second = (down.n, down.k, down.kind, down.has_bias)
    rest = (activation, residual, out_dtype, backend, down.isa)
    return _gated_mlp(x, gate_up.data, *first, down.data, *second, *rest)


def gated_mlp_out(
    x: Tensor,
    gate_up: PackedLinear,
    down: PackedLinear,
    *,
    activation: str,
    out: Tensor,
    residual: Tensor | None = None,
    workspace: Tensor | None = None,
    backend: str = "auto",
) -> BoundGatedMlp:
    """``gated_mlp`` with packed weights into a given tensor, without torch.library's overhead.

    ``residual`` may be ``out``. ``workspace`` is uint8 of ``mlp_workspace_bytes`` elements, which
    calls that do not run at the same time may share; one is made if none is given. Returns the call
    that was done, to be made again without any checks.
    """
    bound = _bind(Tensors(x, gate_up, down, residual, out), activation, workspace, backend)
    bound()
    return bound


def _gated(activation: str) -> str:
    if activation not in GATED:
        raise InputError(
            f"gated_mlp: activation must be one of {', '.join(GATED)}, got {activation!r}"
        )
    return activation


@torch.library.custom_op("vlakern::gated_mlp", mutates_args=())
def _gated_mlp(
    x: Tensor,
    gate_up: Tensor,
    gate_up_n: int,
    k: int,
    gate_up_kind: str,
    gate_up_bias: bool,
    down: Tensor,
    n: int,
    down_k: int,
    down_kind: str,
    down_bias: bool,
    activation: str,
    residual: Tensor | None,
    out_dtype: torch.dtype,
    backend: str,
    isa: str = ISA,
) -> Tensor:
    first = PackedLinear(gate_up, gate_up_n, k, gate_up_kind, True, gate_up_bias, isa=isa)
    second = PackedLinear(down, n, down_k, down_kind, False, down_bias, isa=isa)
    out = x.new_empty((x.shape[0], n), dtype=out_dtype)
    residual = None if residual is None else _adjacent(residual)
    _bind(Tensors(_adjacent(x), first, second, residual, out), activation, None, backend)()
    return out


def _adjacent(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim == 2 and tensor.stride(1) == 1 else tensor.contiguous()


def _bind(
    tensors: Tensors, activation: str, workspace: Tensor | None, backend: str
) -> BoundGatedMlp:
    _check(tensors, activation)
    facts = facts_of(tensors.gate_up, tensors.down)
    key = key_for(tensors.x.device, (tensors.x.dtype, tensors.out.dtype), flags=facts)
    kernel = resolve("gated_mlp", key, backend)
    return BoundGatedMlp(tensors, kernel(tensors, activation, workspace))


def _check_isas(gate_up: PackedLinear, down: PackedLinear) -> None:
    if gate_up.isa != down.isa:
        raise InputError(
            f"gated_mlp: down must be packed for {gate_up.isa} as gate_up is, got {down.isa}"
        )


def _check(t: Tensors, activation: str) -> None:
    check_weights("gated_mlp", t.gate_up, _gated(activation))
    check_weights("gated_mlp", t.down, "none")
    _check_isas(t.gate_up, t.down)
    if t.down.k != t.gate_up.columns:
        raise InputError(
            f"gated_mlp: down must have K = F = {t.gate_up.columns} as gate_up says, got {t.down.k}"
        )
    if t.x.ndim != 2 or t.x.shape[1] != t.gate_up.k:
        raise InputError(
            f"gated_mlp: x must be [M, K] with K = {t.gate_up.k}, got {list(t.x.shape)}"
        )
    shape = (t.x.shape[0], t.down.n)
    for name, tensor in (("out", t.out), ("residual", t.residual)):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise InputError(
                f"gated_mlp: {name} must be [M, N] = {list(shape)}, got {list(tensor.shape)}"
            )
    for name, tensor in (("x", t.x), ("out", t.out)):
        if tensor.dtype not in FLOATS:
            raise InputError(
                f"gated_mlp: {name} must be torch.float32 or torch.bfloat16, got {tensor.dtype}"
            )
    if t.residual is not None and t.residual.dtype != t.out.dtype:
        raise InputError(
            f"gated_mlp: residual must be {t.out.dtype} like out, got {t.residual.dtype}"
        )
    memory = {"gate_up": t.gate_up.data, "down": t.down.data, "residual": t.residual, "out": t.out}
    for name, tensor in memory.items():
        if tensor is not None and tensor.device != t.x.device:
            raise InputError(
                f"gated_mlp: {name} must be on x's device {t.x.device}, got one on {tensor.device}"
            )


@_gated_mlp.register_fake
def _(
    x,
    gate_up,
    gate_up_n,
    k,
    gate_up_kind,
    gate_up_bias,
    down,
    n,
    down_k,
    down_kind,
    down_bias,
    activation,
    residual,
    out_dtype,
    backend,
    isa=ISA,
):
    return x.new_empty((x.shape[0], n), dtype=out_dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


def _backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
    raise InputError("gated_mlp: packed weights are for inference and give no gradient")


_gated_mlp.register_autograd(_backward, setup_context=_keep)
