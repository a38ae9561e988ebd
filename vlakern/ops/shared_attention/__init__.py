"""Layerwise shared attention of the Mixture-of-Transformers, under ``kv_end`` masks.

Dimension letters: T rows of queries, S rows of own keys, P rows of cached keys, H query heads, G
key-value heads, D head dim. Who sees what is in :class:`KvEnd`; what a backend must do is written
in ``_check.py``, at :class:`Forward`, :class:`Gradients` and :class:`Kernels`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from vlakern.ops._dispatch import Backend, Key, made_by, resolve
from vlakern.ops._refusals import any_of, needs_cpu, needs_triton, never, only_dtypes
from vlakern.ops._torch import key_for
from vlakern.ops.shared_attention._check import (
    Forward,
    Gradients,
    Kernels,
    check,
    check_adjacent,
    check_apart,
    check_outputs,
)
from vlakern.ops.shared_attention.kv_end import KvEnd
from vlakern.ops.shared_attention.packed import PackedPrefix, shared_attention_pack_prefix

__all__ = [
    "BACKENDS",
    "BoundAttention",
    "KvEnd",
    "PackedPrefix",
    "attention_workspace_bytes",
    "shared_attention",
    "shared_attention_out",
    "shared_attention_pack_prefix",
]

KERNELS = "vlakern.ops.shared_attention._kernels"


def _odd_width(key: Key) -> str | None:
    width = dict(key.dims).get("D", 8)
    return f"head dim {width} is not a multiple of 8" if width % 8 else None


def _too_wide(key: Key) -> str | None:
    width = dict(key.dims).get("D", 1)
    return f"head dim {width} is above 256" if width > 256 else None


BACKENDS = (
    Backend(
        "triton",
        made_by(KERNELS, "triton"),
        any_of(needs_triton, only_dtypes("float32", "bfloat16", "float16"), _too_wide),
    ),
    Backend(
        "cpu",
        made_by(KERNELS, "cpu"),
        any_of(needs_cpu, only_dtypes("float32", "bfloat16"), _odd_width),
    ),
    Backend("reference", made_by(KERNELS, "reference"), never),
)


@dataclass(frozen=True)
class BoundAttention:
    """A checked and resolved ``shared_attention_out``; calling it attends again, in place."""

    tensors: Forward  # kept alive, since native kernels hold only their addresses
    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()


def shared_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    who: KvEnd,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    *,
    rows: Tensor | None = None,
    scale: float | None = None,
    deterministic: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """softmax(scale · q kᵀ) v over the keys that each query sees (arXiv 2602.09722, Eq. 1).

    Differentiable in q, k, v, prefix_k and prefix_v, through both results. Under autocast the
    floating arguments are cast to autocast's dtype, as for torch's own attention.

    Args:
        q: ``[T, H, D]``, fp32, bf16 or fp16 (fp64: reference only), in the experts' order.
        k, v: own keys and values ``[S, G, D]`` in joint order, in q's dtype; H is a multiple of G
            and query head h reads key-value head ``h // (H // G)``.
        who: the ranges that the queries see.
        prefix_k, prefix_v: cached keys and values ``[P, G, D]`` that ``who.cu_prefix`` divides.
        rows: int32 ``[T]``, a permutation: joint query i, of which ``who`` speaks, is row
            ``rows[i]`` of q and of both results; row i itself by default.
        scale: of the scores, not negative; ``1 / sqrt(D)`` by default.
        deterministic: the gradients have the same bits every time; False allows atomic sums.
        backend: ``auto`` or the name of one.

    Returns:
        out ``[T, H, D]`` in q's dtype, computed in fp32, and the natural log-sum-exp of the scores
        ``[T, H]`` in fp32. A query that sees nothing gives 0 and -inf, and gradients 0.

    Raises:
        InputError: a shape, dtype or device does not fit.
        Unsupported: the named backend refuses the case.
    """
    device = q.device.type
    if torch.is_autocast_enabled(device) and q.dtype != torch.float64:
        low = torch.get_autocast_dtype(device)
        q, k, v = q.to(low), k.to(low), v.to(low)
        if prefix_k is not None and prefix_v is not None:
            prefix_k, prefix_v = prefix_k.to(low), prefix_v.to(low)
    check(q, k, v, who, prefix_k, prefix_v, rows, scale)
    factor = 1 / math.sqrt(q.shape[2]) if scale is None else scale
    ranges = (who.cu_q, who.cu_k, who.kv_end, who.cu_prefix, who.prefix_index)
    sizes = (who.max_q, who.max_keys)
    given = (q, k, v, *ranges, prefix_k, prefix_v, rows)
    return _forward(*given, *sizes, factor, deterministic, backend)


def shared_attention_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    who: KvEnd,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    *,
    out: Tensor,
    lse: Tensor,
    rows: Tensor | None = None,
    packed: PackedPrefix | None = None,
    workspace: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> BoundAttention:
    """``shared_attention`` into given tensors, without torch.library's overhead and gradients.

    Returns the pass that was made: an engine whose buffers stay in place calls it again, without
    any checks. ``packed`` is what ``shared_attention_pack_prefix`` made of prefix_k and prefix_v:
    the native kernels read it instead, to the same bits; other backends have no use for it.
    ``workspace`` is uint8 of ``attention_workspace_bytes`` elements for the Triton kernels, which
    calls that do not run at the same time may share; they make one if none is given.
    """
    check(q, k, v, who, prefix_k, prefix_v, rows, scale)
    check_outputs(q, out, lse)
    check_apart(out, lse, q=q, k=k, v=v, prefix_k=prefix_k, prefix_v=prefix_v, rows=rows)
    check_adjacent(q=q, k=k, v=v, prefix_k=prefix_k, prefix_v=prefix_v, out=out)
    factor = 1 / math.sqrt(q.shape[2]) if scale is None else scale
    once = None if packed is None else packed.data
    given = (q, k, v, who, prefix_k, prefix_v, rows, factor, True, out, lse)
    tensors = Forward(*given, once, workspace)
    bound = BoundAttention(tensors, _chosen(q, k, backend).forward(tensors))
    bound()
    return bound


def attention_workspace_bytes(q: Tensor, k: Tensor, who: KvEnd) -> int:
    """Bytes of workspace that the Triton kernels need for these shapes; nothing is read."""
    from vlakern.ops.shared_attention.triton_launch import scratch_bytes

    return scratch_bytes(q, k, who)


def _chosen(q: Tensor, k: Tensor, backend: str, *flags: str) -> Kernels:
    dims = (("H", q.shape[1]), ("G", k.shape[1]), ("D", q.shape[2]))
    key = key_for(q.device, (q.dtype,), dims, frozenset(flags))
    return cast(Kernels, resolve("shared_attention", key, backend))


@torch.library.custom_op("vlakern::shared_attention", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    kv_end: Tensor,
    cu_prefix: Tensor | None,
    prefix_index: Tensor | None,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    rows: Tensor | None,
    max_q: int,
    max_keys: int,
    scale: float,
    deterministic: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    out, lse = _empty(q)
    q, k, v = _adjacent(q), _adjacent(k), _adjacent(v)
    prefix_k = None if prefix_k is None else _adjacent(prefix_k)
    prefix_v = None if prefix_v is None else _adjacent(prefix_v)
    who = _who(k, prefix_k, cu_q, cu_k, kv_end, cu_prefix, prefix_index, max_q, max_keys)
    f = Forward(q, k, v, who, prefix_k, prefix_v, rows, scale, deterministic, out, lse)
    _chosen(q, k, backend).forward(f)()
    return out, lse


@torch.library.custom_op("vlakern::shared_attention_backward", mutates_args=())
def _backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    kv_end: Tensor,
    cu_prefix: Tensor | None,
    prefix_index: Tensor | None,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    rows: Tensor | None,
    max_q: int,
    max_keys: int,
    scale: float,
    deterministic: bool,
    backend: str,
) -> list[Tensor]:
    q, k, v = _adjacent(q), _adjacent(k), _adjacent(v)
    prefix_k = None if prefix_k is None else _adjacent(prefix_k)
    prefix_v = None if prefix_v is None else _adjacent(prefix_v)
    who = _who(k, prefix_k, cu_q, cu_k, kv_end, cu_prefix, prefix_index, max_q, max_keys)
    f = Forward(q, k, v, who, prefix_k, prefix_v, rows, scale, deterministic, out, lse)
    made = _empty_gradients(q, k, v, prefix_k, prefix_v)
    grad_out = _adjacent(grad_out)
    cached = (made[3], made[4]) if prefix_k is not None else (None, None)
    g = Gradients(f, grad_out, grad_lse, made[0], made[1], made[2], *cached)
    flags = ("backward", "deterministic") if deterministic else ("backward",)
    _chosen(q, k, backend, *flags).backward(g)()
    return made


def _who(
    k: Tensor,
    prefix_k: Tensor | None,
    cu_q: Tensor,
    cu_k: Tensor,
    kv_end: Tensor,
    cu_prefix: Tensor | None,
    prefix_index: Tensor | None,
    max_q: int,
    max_keys: int,
) -> KvEnd:
    return KvEnd.trusted(
        cu_q=cu_q,
        cu_k=cu_k,
        kv_end=kv_end,
        cu_prefix=cu_prefix,
        prefix_index=prefix_index,
        max_q=max_q,
        max_keys=max_keys,
        queries=len(kv_end),
        keys=len(k),
        prefix_keys=0 if prefix_k is None else len(prefix_k),
    )


def _adjacent(x: Tensor) -> Tensor:
    """Kernels read the D numbers of a head in one run; whatever else is strided stays so."""
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def _empty(q: Tensor) -> tuple[Tensor, Tensor]:
    """Contiguous, so that an input that is expanded does not make an output that is."""
    wide = torch.promote_types(q.dtype, torch.float32)
    return (
        torch.empty(q.shape, dtype=q.dtype, device=q.device),
        torch.empty(q.shape[:2], dtype=wide, device=q.device),
    )


def _empty_gradients(*inputs: Tensor | None) -> list[Tensor]:
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs if x is not None]


@_forward.register_fake
def _(q, *rest):
    return _empty(q)


@_backward.register_fake
def _(grad_out, grad_lse, out, lse, q, k, v, cu_q, cu_k, kv_end, cu_p, index, pk, pv, *rest):
    return _empty_gradients(q, k, v, pk, pv)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, *inputs[:11])
    ctx.options = inputs[11:]


def _gradients(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    out, lse, *given = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    made = _backward(grad_out, grad_lse, out, lse, *given, *ctx.options)
    cached = made[3:] if len(made) == 5 else (None, None)
    return (*made[:3], *(None,) * 5, *cached, *(None,) * 6)


_forward.register_autograd(_gradients, setup_context=_keep)
