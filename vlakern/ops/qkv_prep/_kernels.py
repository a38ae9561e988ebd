"""The backends of ``qkv_prep`` under one signature; each function here makes a pair of directions.

A forward binds a call and its outputs, q of each expert and the joint k and v, to a call without
arguments. A backward fills the gradients of what it is given.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlakern import env
from vlakern.ops import _native
from vlakern.ops._torch import check_index
from vlakern.ops.qkv_prep._check import Call
from vlakern.ops.qkv_prep.reference import (
    Gradients,
    compute_dtype,
    qkv_prep_gradients,
    qkv_prep_reference,
)

__all__ = ["Kernels", "cpu", "reference", "triton"]

Bind = Callable[[Call, Sequence[Tensor], Tensor, Tensor, int], Callable[[], None]]


class Kernels(NamedTuple):
    """The two directions of one backend.

    ``forward(call, q_outs, k_out, v_out, row_offset)`` and ``backward(call, grads, found)``, where
    ``grads`` are those of the experts' q and of the joint k and v, and ``found`` is a record of
    gradients to fill for each expert; cos and sin in it are joint, or None.
    """

    forward: Bind
    backward: Callable[[Call, Sequence[Tensor], Tensor, Tensor, Sequence[Any]], None]


def cpu() -> Kernels:
    """The native CPU kernels, on as many threads as torch uses."""
    native, isa = _native.cpu_module(), env.cpu_isa()
    native.selected_isa(isa)  # raises Unsupported here and not in the first call

    def experts_of(call: Call) -> list[tuple[Any, ...]]:
        return [
            tuple(map(_native.view, (e.q, e.k, e.v, e.rows, e.q_weight, e.k_weight)))
            for e in call.experts
        ]

    def bind(
        call: Call, q_outs: Sequence[Tensor], k_out: Tensor, v_out: Tensor, row_offset: int
    ) -> Callable[[], None]:
        outs = [_native.view(one) for one in q_outs]
        joint = map(_native.view, (call.cos, call.sin, k_out, v_out))
        settings = (row_offset, call.eps, call.plus_one, isa, torch.get_num_threads())
        bound = native.QkvPrep(experts_of(call), outs, *joint, *settings)
        if call.complete:
            bound.check_permutation()
        return bound

    def backward(
        call: Call,
        dq: Sequence[Tensor],
        dk: Tensor,
        dv: Tensor,
        found: Sequence[Gradients],
    ) -> None:
        sums, views = [], []
        for expert, one, grad in zip(call.experts, found, dq, strict=True):
            width = expert.q.shape[2]
            weights = [
                None if w is None else torch.empty(width) for w in (one.q_weight, one.k_weight)
            ]
            runs = native.qkv_prep_runs(len(expert.rows)) if one.q_weight is not None else 0
            kept = torch.empty((runs, 2, width))
            sums.append((weights, kept))
            parts = (grad, one.q, one.k, one.v, *weights, kept)
            views.append(tuple(map(_native.view, parts)))
        angles = (found[0].cos, found[0].sin)
        joint = map(_native.view, (call.cos, call.sin, dk, dv, *angles))
        settings = (call.eps, call.plus_one, isa, torch.get_num_threads())
        native.qkv_prep_backward(experts_of(call), views, *joint, *settings)
        for one, (weights, _) in zip(found, sums, strict=True):
            for to, exact in zip((one.q_weight, one.k_weight), weights, strict=True):
                if to is not None and exact is not None:
                    to.copy_(exact)

    return Kernels(bind, backward)


def triton() -> Kernels:
    """The Triton kernels."""
    from vlakern.ops.qkv_prep.triton_kernels import launch, launch_backward

    return Kernels(partial(partial, launch), launch_backward)


def reference() -> Kernels:
    """The definition."""
    return Kernels(partial(partial, _reference), _reference_gradients)


def _reference(
    call: Call, q_outs: Sequence[Tensor], k_out: Tensor, v_out: Tensor, row_offset: int
) -> None:
    for expert, q_out in zip(call.experts, q_outs, strict=True):
        at = expert.rows.long()
        check_index("qkv_prep: rows", at, len(call.cos))
        q_weights, k_weights = (
            [] if w is None else [w] for w in (expert.q_weight, expert.k_weight)
        )
        wide = compute_dtype(expert.q)
        parts = [one.flatten(1).to(wide) for one in (expert.q, expert.k, expert.v)]
        order = torch.arange(len(at), dtype=torch.int32, device=at.device)
        q, k, v = qkv_prep_reference(
            parts,
            q_weights,
            k_weights,
            call.cos[at],
            call.sin[at],
            [order],
            heads=expert.q.shape[1],
            groups=expert.k.shape[1],
            eps=call.eps,
            plus_one=call.plus_one,
        )
        q_out.copy_(q)
        k_out[at + row_offset] = k.to(k_out.dtype)
        v_out[at + row_offset] = v.to(v_out.dtype)


def _reference_gradients(
    call: Call, dq: Sequence[Tensor], dk: Tensor, dv: Tensor, found: Sequence[Gradients]
) -> None:
    for expert, grad, to in zip(call.experts, dq, found, strict=True):
        at = expert.rows.long()
        one = qkv_prep_gradients(
            (expert.q, expert.k, expert.v),
            (expert.q_weight, expert.k_weight),
            (call.cos[at], call.sin[at]),
            (grad, dk[at], dv[at]),
            call.eps,
            call.plus_one,
        )
        for name in ("q", "k", "v", "q_weight", "k_weight"):
            if getattr(to, name) is not None:
                getattr(to, name).copy_(getattr(one, name))
        for name in ("cos", "sin"):
            if getattr(to, name) is not None:
                getattr(to, name)[at] = getattr(one, name)
