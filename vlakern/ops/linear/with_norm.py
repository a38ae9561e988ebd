"""``linear`` into a residual stream with the RMS norm that follows it, for engines."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

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
) -> BoundLinearNorm:
    """``stream += x Wᵀ + b`` and ``normed = stream / rms(stream)``: to the bit what ``linear_out``
    with the stream as residual and ``norm_out`` make, by one kernel less where ``triton`` splits K.

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

    Raises:
        InputError: a shape, dtype or device does not fit.
        Unsupported: the backend refuses the case.
    """
    tensors = Tensors(x, weight, None, stream, None, stream)
    if adaptive is not None:
        check_adaptive(adaptive, stream)
    if backend != "triton":
        run = _two_calls(tensors, normed, eps, backend, workspace, adaptive)
        return BoundLinearNorm(tensors, normed, adaptive, run)
    check(tensors, "none")
    key = key_for(x.device, (x.dtype, stream.dtype), flags=facts_of(weight))
    resolve("linear", key, backend)  # refuses what it cannot serve
    from vlakern.ops.linear.triton_launch import Product
    from vlakern.ops.linear.triton_norm import bind

    product = Product(x, weight, stream, residual=stream)
    run = bind(product, normed, eps, workspace, adaptive)
    bound = BoundLinearNorm(tensors, normed, adaptive, run)
    bound()
    return bound


def _two_calls(
    t: Tensors,
    normed: Tensor,
    eps: float,
    backend: str,
    workspace: Tensor | None,
    adaptive: Adaptive | None,
) -> Callable[[], object]:
    """Both were made once."""
    stream = t.out
    linear = partial(linear_out, t.x, t.weights, workspace=workspace, backend=backend)
    norm = partial(norm_out, stream, y_out=normed, eps=eps, backend=backend)
    if adaptive is None:
        made = (linear(out=stream, residual=stream), norm())
    else:
        scale, shift, gate, row_group, added = adaptive
        norm = partial(norm, scale=scale, shift=shift, gate=gate, row_group=row_group)
        made = (linear(out=added), norm(h_out=stream, residual=added))
    return lambda: [one() for one in made]
