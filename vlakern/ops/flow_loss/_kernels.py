"""The backends of ``flow_mix`` and ``flow_loss`` under one signature; each function makes a set.

``mix`` and ``loss`` bind one checked call to memory, to be made again and again; ``gradient`` runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vlakern import env
from vlakern.ops import _native
from vlakern.ops._torch import check_index
from vlakern.ops.flow_loss._check import Loss, Mix, Source
from vlakern.ops.flow_loss.reference import (
    LAWS,
    flow_loss_gradient,
    flow_loss_reference,
    flow_mix_reference,
)

__all__ = ["Kernels", "cpu", "reference", "triton"]


@dataclass(frozen=True)
class Kernels:
    """The faces of the op on one backend.

    Attributes:
        mix: binds a ``flow_mix`` call.
        loss: binds a ``flow_loss`` call.
        gradient: writes the gradient of the velocity, given that of the loss ``[1]``.
    """

    mix: Callable[[Mix], Callable[[], None]]
    loss: Callable[[Loss], Callable[[], None]]
    gradient: Callable[[Loss, Tensor, Tensor], None]


def _source(t: Source) -> tuple[object, ...]:
    return (*map(_native.view, (t.action, t.noise, t.rows, t.slots)), t.seed)


def _columns(tau: Tensor | None) -> _native.View | None:
    """τ as ``[R, T]``."""
    return _native.view(tau if tau is None or tau.ndim == 2 else tau[:, None])


def cpu() -> Kernels:
    """The native CPU kernels, on as many threads as torch uses."""
    native, isa = _native.cpu_module(), env.cpu_isa()
    native.selected_isa(isa)  # raises Unsupported here and not in the first call

    def mix(t: Mix) -> Callable[[], None]:
        law = (LAWS.index(t.law.kind), t.law.alpha, t.law.s)
        given = (_columns(t.tau), _native.view(t.x), _columns(t.tau_out))
        threads = torch.get_num_threads()
        return partial(native.flow_mix, _source(t.source), *given, law, isa, threads)

    def loss(t: Loss) -> Callable[[], None]:
        given = (t.velocity, t.mask, t.group, t.weights, t.coefficients, t.loss)
        views, threads = map(_native.view, given), torch.get_num_threads()
        return partial(native.flow_loss, _source(t.source), *views, isa, threads)

    def gradient(t: Loss, grad: Tensor, out: Tensor) -> None:
        given = (t.velocity, t.mask, t.group, t.coefficients, out)
        views, threads = map(_native.view, given), torch.get_num_threads()
        native.flow_loss_gradient(_source(t.source), *views, float(grad), isa, threads)

    return Kernels(mix, loss, gradient)


def triton() -> Kernels:
    """The Triton kernels."""
    from vlakern.ops.flow_loss import triton_kernels

    return Kernels(
        partial(partial, triton_kernels.mix),
        partial(partial, triton_kernels.loss),
        triton_kernels.gradient,
    )


def reference() -> Kernels:
    """The definition."""
    return Kernels(partial(partial, _mix), partial(partial, _loss), _gradient)


def _mix(t: Mix) -> None:
    x, tau = flow_mix_reference(t.source.action, len(t.x), *t.source[1:], t.tau, t.law, t.x.dtype)
    t.x.copy_(x)
    t.tau_out.copy_(tau)


def _loss(t: Loss) -> None:
    if t.group is not None:
        check_index("flow_loss: group", t.group, len(t.coefficients))
    loss, coefficients = flow_loss_reference(
        t.velocity, *t.source, t.mask, t.group, t.weights, len(t.coefficients)
    )
    t.loss.copy_(loss)
    t.coefficients.copy_(coefficients)


def _gradient(t: Loss, grad: Tensor, out: Tensor) -> None:
    coefficients = t.coefficients * grad
    out.copy_(flow_loss_gradient(t.velocity, *t.source, t.mask, t.group, coefficients))
