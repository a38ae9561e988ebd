"""The backends of ``action_unembed`` under one signature; each function here makes one kernel.

A kernel binds tensors to a call without arguments, which may be made again and again on the same
memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlakern import env
from vlakern.ops import _native
from vlakern.ops.action_embed._kernels import Held, dense, hidden_dtype, packed
from vlakern.ops.action_unembed.reference import action_unembed_reference
from vlakern.ops.linear._kernels import workspace_bytes
from vlakern.ops.linear.packed import PackedLinear

__all__ = ["FinalNorm", "Tensors", "cpu", "reference", "triton"]


@dataclass(frozen=True)
class FinalNorm:
    """The final norm; all tensors ``[M]``."""

    kind: str
    weight: Tensor | None = None
    bias: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    eps: float = 1e-6

    @property
    def parts(self) -> tuple[Any, ...]:
        """Its fields, in order."""
        return self.kind, self.weight, self.bias, self.scale, self.shift, self.eps

    @property
    def options(self) -> dict[str, Any]:
        """The keywords of ``action_unembed_reference``."""
        names = ("norm", "norm_weight", "norm_bias", "scale", "shift", "eps")
        return dict(zip(names, self.parts, strict=True))


class Tensors(NamedTuple):
    """What every backend takes. Letters: N rows, M width, F hidden columns, A slots."""

    h: Tensor  # [N, M]
    norm: FinalNorm | None
    w_hidden: PackedLinear | None  # F rows, M
    w_out: PackedLinear  # A rows, F or M
    y: Tensor  # [N, A]


Kernel = Callable[[Tensors], Callable[[], None]]


def cpu() -> Kernel:
    """The native CPU kernel, on as many threads as torch uses."""
    native, isa = _native.cpu_module(), env.cpu_isa()
    native.selected_isa(isa)  # raises Unsupported here and not in the first call

    def bind(t: Tensors) -> Callable[[], None]:
        rows, hidden, normed, norm = t.h.shape[0], None, None, None
        size = workspace_bytes(rows, t.w_out, "none")
        if t.w_hidden is not None:
            hidden = torch.empty((rows, t.w_hidden.n), dtype=hidden_dtype(t.w_out))
            size = max(size, workspace_bytes(rows, t.w_hidden, "relu"))
        if t.norm is not None:
            normed = torch.empty(t.h.shape, dtype=t.h.dtype)
            rows_of = [None if s is None else s[None] for s in (t.norm.scale, t.norm.shift)]
            tensors = (t.norm.weight, t.norm.bias, *rows_of)
            norm = (*map(_native.view, tensors), t.norm.kind, t.norm.eps)
        workspace = torch.empty(size, dtype=torch.uint8)
        weights = (packed(t.w_hidden), _native.view(hidden), packed(t.w_out))
        ends = map(_native.view, (t.y, workspace))
        given = (_native.view(t.h), norm, _native.view(normed), *weights, *ends)
        call = native.ActionUnembed(*given, isa, torch.get_num_threads())
        return Held(call, (t, hidden, normed, workspace))

    return bind


def triton() -> Kernel:
    """The Triton kernels."""
    from vlakern.ops.action_unembed.triton_kernels import bind

    return bind


def reference() -> Kernel:
    """The definition, with weights as they were rounded."""
    return lambda t: partial(_reference, t)


def _reference(t: Tensors) -> None:
    hidden = (None, None) if t.w_hidden is None else dense(t.w_hidden)
    out = dense(t.w_out)
    options = {} if t.norm is None else t.norm.options
    t.y.copy_(action_unembed_reference(t.h, *hidden, *out, **options, out_dtype=t.y.dtype))
