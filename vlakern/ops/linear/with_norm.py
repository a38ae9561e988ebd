"""``linear`` into a residual stream with the RMS norm that follows it, for engines."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.ops._dispatch import resolve
from vlakern.ops._torch import key_for
from vlakern.ops.linear import linear_out
from vlakern.ops.linear._check import Adaptive, Tensors, check, check_adaptive, facts_of
from vlakern.ops.linear.packed import PackedLinear
from vlakern.ops.norm import norm_out

__all__ = ["Adaptive", "BoundLinearNorm", "linear_norm_out"]


@dataclass(frozen=True)
class BoundLinearNorm:
    """A checked and resolved ``linear_norm_out`` on fixed memory; calling it adds again."""

    tensors: Tensors
    normed: Tensor
    adaptive: Adaptive | None
    factors: Tensor | None
    run: Callable[[], object]

    def __call__(self) -> None:
        self.run()


def linear_norm_out(
    x: Tensor,
    weight: PackedLinear,
    *,
    stream: Tensor,
    normed: Tensor,
    eps: float,
    backend: str,
    workspace: Tensor | None = None,
    adaptive: Adaptive | None = None,
    factors: Tensor | None = None,
) -> BoundLinearNorm:
    """``stream += x Wᵀ + b`` and ``normed = stream / rms(stream) · factors``: to the bit what
    ``linear_out`` with the stream as residual and ``norm_out`` with the factors as weight make, by
    one kernel less where ``triton`` splits K.

    With ``adaptive`` it is ``stream += gate · (x Wᵀ + b)`` and ``normed = stream / rms(stream) ·
    (1 + scale) + shift``: what ``linear_out`` and a ``norm_out`` with its output as residual make.

    Letters: M rows, K inputs, N columns.

    Args:
        x: ``[M, K]``, fp32 or bf16.
        weight: from ``pack_linear``, without a gate.
        stream: ``[M, N]``, read and written.
        normed: ``[M, N]`` in the stream's dtype.
        eps: added to the mean square.
        backend: the name of one.
        workspace: as ``linear_out`` takes it.
        adaptive: gate, scale and shift of groups of rows.
        factors: fp32 ``[N]``, the norm's weight, 1 by default; not with ``adaptive``.

    Raises:
        InputError: a shape, dtype or device does not fit.
        Unsupported: the backend refuses the case.
    """
    tensors = Tensors(x, weight, None, stream, None, stream)
    if adaptive is not None:
        check_adaptive(adaptive, stream)
    _check_factors(factors, stream, adaptive)
    if backend != "triton":
        run = _two_calls(tensors, normed, eps, backend, workspace, adaptive, factors)
        return BoundLinearNorm(tensors, normed, adaptive, factors, run)
    check(tensors, "none")
    key = key_for(x.device, (x.dtype, stream.dtype), flags=facts_of(weight))
    resolve("linear", key, backend)  # refuses what it cannot serve
    from vlakern.ops.linear.triton_launch import Product
    from vlakern.ops.linear.triton_norm import bind

    product = Product(x, weight, stream, residual=stream)
    run = bind(product, normed, eps, workspace, adaptive, factors)
    bound = BoundLinearNorm(tensors, normed, adaptive, factors, run)
    bound()
    return bound


def _check_factors(factors: Tensor | None, stream: Tensor, adaptive: Adaptive | None) -> None:
    if factors is None:
        return
    plain = factors.dtype == torch.float32 and factors.is_contiguous()
    if adaptive is not None or not plain or factors.shape != stream.shape[1:]:
        raise InputError(
            f"linear_norm_out: factors are {factors.dtype} {list(factors.shape)}, expected"
            f" contiguous fp32 [N] = {list(stream.shape[1:])} and no adaptive norm"
        )


def _two_calls(
    t: Tensors,
    normed: Tensor,
    eps: float,
    backend: str,
    workspace: Tensor | None,
    adaptive: Adaptive | None,
    factors: Tensor | None,
) -> Callable[[], object]:
    """Both were made once."""
    stream = t.out
    linear = partial(linear_out, t.x, t.weights, workspace=workspace, backend=backend)
    norm = partial(norm_out, stream, factors, y_out=normed, eps=eps, backend=backend)
    if adaptive is None:
        made = (linear(out=stream, residual=stream), norm())
    else:
        scale, shift, gate, row_group, added = adaptive
        norm = partial(norm, scale=scale, shift=shift, gate=gate, row_group=row_group)
        made = (linear(out=added), norm(h_out=stream, residual=added))
    return lambda: [one() for one in made]
