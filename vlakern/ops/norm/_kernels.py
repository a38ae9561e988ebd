"""The backends of ``norm`` under one signature; each function here makes a forward and a backward.

A forward binds tensors, kind and eps to a call without arguments, which may be made again and again
on the same memory. A backward takes the tensors with h in the place of x and fills the gradients of
x, residual, weight, bias, scale, shift and gate.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vlakern import env
from vlakern.ops import _native
from vlakern.ops._torch import check_index
from vlakern.ops.norm._check import MODULATIONS, Tensors
from vlakern.ops.norm.reference import norm_gradients, norm_reference

__all__ = ["Kernels", "cpu", "reference", "triton"]


class Kernels(NamedTuple):
    """The two directions of one backend."""

    forward: Callable[[Tensors, str, float], Callable[[], None]]
    backward: Callable[[Tensors, Tensor, Tensor | None, Sequence[Tensor], str, float], None]


def by_groups(t: Tensors) -> Tensors:
    """Modulations as ``[B, M]``, B = 1 for those that all rows share."""
    flat = {n: m[None] for n in MODULATIONS if (m := getattr(t, n)) is not None and m.ndim == 1}
    return t._replace(**flat) if flat else t


def cpu() -> Kernels:
    """The native CPU kernels, on as many threads as torch uses."""
    native, isa = _native.cpu_module(), env.cpu_isa()
    native.selected_isa(isa)  # raises Unsupported here and not in the first call

    def bind(t: Tensors, kind: str, eps: float) -> Callable[[], None]:
        views = map(_native.view, by_groups(t))
        return native.Norm(*views, kind, eps, isa, torch.get_num_threads())

    def backward(
        t: Tensors,
        grad_y: Tensor,
        grad_h: Tensor | None,
        grads: Sequence[Tensor],
        kind: str,
        eps: float,
    ) -> None:
        t = by_groups(t)
        x, residual, *params = (None if one.ndim == 1 and not len(one) else one for one in grads)
        # Sums are fp32; they are rounded to the parameters' dtypes at the end.
        sums = [None if one is None else torch.empty(one.shape) for one in params]
        two = [None if s is None else s[None] if s.ndim == 1 else s for s in sums[2:]]
        partial = torch.empty(partial_shape(t, native.norm_runs))
        views = map(_native.view, (grad_y, grad_h, x, residual, *sums[:2], *two, partial))
        given = tuple(map(_native.view, t[:8]))
        native.norm_backward(given, *views, kind, eps, isa, torch.get_num_threads())
        for to, found in zip(params, sums, strict=True):
            if to is not None and found is not None:
                to.copy_(found)

    return Kernels(bind, backward)


def partial_shape(t: Tensors, runs: Callable[[int, int], int]) -> tuple[int, int, int]:
    """``[K, B · S, M]``: kinds of sums, groups and the runs of rows of each, see ``norm.h``."""
    modulations = [m for m in (t.scale, t.shift, t.gate) if m is not None]
    groups = len(modulations[0]) if modulations else 1
    factors = t.weight is not None or t.scale is not None
    addends = t.bias is not None or t.shift is not None
    kinds = factors + addends + (t.gate is not None)
    return kinds, groups * runs(t.x.shape[0], groups), t.x.shape[1]


def triton() -> Kernels:
    """The Triton kernels."""
    from vlakern.ops.norm._triton_launch import launch, launch_backward

    def bind(t: Tensors, kind: str, eps: float) -> Callable[[], None]:
        return partial(launch, by_groups(t), kind, eps)

    return Kernels(bind, lambda t, *rest: launch_backward(by_groups(t), *rest))


def reference() -> Kernels:
    """The definition."""
    return Kernels(partial(partial, _reference), _reference_gradients)


def _reference(t: Tensors, kind: str, eps: float) -> None:
    named = t._asdict()
    x, y_out, h_out = named.pop("x"), named.pop("y"), named.pop("h")
    vectors = (t.scale, t.shift, t.gate)
    groups = next((len(one) for one in vectors if one is not None), 1)
    if t.row_group is not None:
        check_index("norm: row_group", t.row_group, groups)
    y, h = norm_reference(x, **named, kind=kind, eps=eps)
    y_out.copy_(y)
    if h_out is not None:
        h_out.copy_(h)


def _reference_gradients(
    t: Tensors,
    grad_y: Tensor,
    grad_h: Tensor | None,
    grads: Sequence[Tensor],
    kind: str,
    eps: float,
) -> None:
    named = t._asdict()
    for name in ("x", "y", "h"):
        named.pop(name)
    found = norm_gradients(grad_y, grad_h, t.x, **named, kind=kind, eps=eps)
    for to, one in zip(grads, found, strict=True):
        if one is not None:
            to.copy_(one)
