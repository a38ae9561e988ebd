"""Binds passes of ``shared_attention`` to launches of the Triton kernels; once per memory."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from vlakern import env
from vlakern.errors import InputError
from vlakern.ops._torch import processors
from vlakern.ops.shared_attention._check import Forward, Gradients, Run
from vlakern.ops.shared_attention._plan import Sizes, plan_backward, plan_forward, width
from vlakern.ops.shared_attention.kv_end import KvEnd
from vlakern.ops.shared_attention.triton_backward import dkv_kernel, dq_kernel
from vlakern.ops.shared_attention.triton_kernels import attend_kernel, combine_kernel

__all__ = ["backward", "forward", "scratch_bytes"]

WIDE_LOAD = 8  # elements: 16 bytes of bf16


def forward(f: Forward) -> Run:
    """Binds a forward pass; the parts of a split one get memory here if none is given."""
    queries, heads, head_dim = f.q.shape
    if f.q.numel() == 0:
        return _in_turn((), f.q)
    plan = plan_forward(_sizes(f.q, f.k, f.who))
    inputs = [f.q, f.k, f.v, _or(f.prefix_k, f.k), _or(f.prefix_v, f.v)]
    out, lse = f.out[None], f.lse[None]
    if plan.splits > 1:
        out, lse = _parts(f, plan.splits)
    align = _align([*inputs, out[0]])
    options = {
        **_shared(f, align),
        "BLOCK_M": plan.block_m,
        "BLOCK_N": plan.block_n,
        "num_warps": plan.warps,
        "num_stages": plan.stages,
    }
    arguments = (
        *inputs,
        out,
        lse,
        *_ranges(f),
        *(_strides(x, align) for x in (*inputs, out[0])),
        lse[0].stride(),
        out.stride(0) // align,
        lse.stride(0),
        plan.tiles,
        plan.chunk,
        f.scale,
    )
    grid = (_documents(f) * plan.tiles, f.k.shape[1], plan.splits)
    runs = [partial(attend_kernel[grid], *arguments, **options)]
    if plan.splits > 1:
        align = _align([f.out])
        final = (f.out, f.lse, _strides(f.out, align), f.lse.stride(), out.stride(0), lse.stride(0))
        sizes = {"D": head_dim, "BLOCK_D": width(head_dim), "ALIGN": align}
        sizes |= {"BLOCK_S": triton.next_power_of_2(plan.splits), "WIDEN": _widen(f)}
        combine = combine_kernel[(queries, heads)]
        runs.append(partial(combine, out, lse, *final, plan.splits, **sizes, num_warps=4, **FUSE))
    return _in_turn(runs, f.q)


def backward(g: Gradients) -> Run:
    """Binds a backward pass: dq, which also writes delta, then dk and dv of own keys and cached."""
    f = g.forward
    delta = torch.empty(f.lse.shape, dtype=torch.float32, device=f.q.device)
    runs = [] if f.q.numel() == 0 else [_dq(g, delta)]
    if f.k.numel() > 0:
        runs.append(_dkv(g, delta, f.k, f.v, g.grad_k, g.grad_v, of_prefix=False))
    if f.prefix_k is not None and f.prefix_v is not None and f.prefix_k.numel() > 0:
        cached = (f.prefix_k, f.prefix_v, g.grad_prefix_k, g.grad_prefix_v)
        runs.append(_dkv(g, delta, *cached, of_prefix=True))
    return _in_turn(runs, f.q)


def _dq(g: Gradients, delta: Tensor) -> Run:
    f = g.forward
    plan = plan_backward(f.q.shape[2], f.q.element_size())
    tiles = triton.cdiv(f.who.max_q * f.q.shape[1] // f.k.shape[1], plan.dq_m)
    inputs = (f.q, f.k, f.v, _or(f.prefix_k, f.k), _or(f.prefix_v, f.v))
    grad_lse = _or(g.grad_lse, f.lse)
    align = _align([*inputs, f.out, g.grad_out, g.grad_q])
    strides = (
        *(_strides(x, align) for x in (*inputs, f.out)),
        f.lse.stride(),
        _strides(g.grad_out, align),
        grad_lse.stride(),
        _strides(g.grad_q, align),
        delta.stride(),
    )
    options = {
        **_shared(f, align),
        "HAS_GRAD_LSE": g.grad_lse is not None,
        "BLOCK_M": plan.dq_m,
        "BLOCK_N": plan.dq_n,
        "num_warps": plan.warps,
        "num_stages": plan.stages,
    }
    pointers = (*inputs, f.out, f.lse, g.grad_out, grad_lse, g.grad_q, delta, *_ranges(f))
    grid = (_documents(f) * tiles, f.k.shape[1])
    return partial(dq_kernel[grid], *pointers, *strides, tiles, f.scale, **options)


def _dkv(g: Gradients, delta: Tensor, *tensors: Any, of_prefix: bool) -> Run:
    f, (k, v, grad_k, grad_v) = g.forward, tensors
    plan = plan_backward(f.q.shape[2], f.q.element_size())
    documents = _documents(f)
    longest = len(k) if of_prefix else min(f.who.max_keys, len(k))
    tiles = triton.cdiv(longest, plan.dkv_n)
    align = _align([f.q, k, v, g.grad_out, grad_k, grad_v])
    strides = (
        *(_strides(x, align) for x in (f.q, k, v)),
        f.lse.stride(),
        _strides(g.grad_out, align),
        delta.stride(),
        _strides(grad_k, align),
        _strides(grad_v, align),
    )
    options = {
        **_shared(f, align),
        "OF_PREFIX": of_prefix,
        "BLOCK_M": plan.dkv_m,
        "BLOCK_N": plan.dkv_n,
        "num_warps": plan.warps,
        "num_stages": plan.stages,
    }
    pointers = (f.q, k, v, f.lse, g.grad_out, delta, grad_k, grad_v, *_ranges(f))
    sizes = (tiles, documents, len(k), f.scale)
    grid = (tiles if of_prefix else documents * tiles, k.shape[1])
    return partial(dkv_kernel[grid], *pointers, *strides, *sizes, **options)


FUSE: dict[str, Any] = {"enable_fp_fusion": True}


def _shared(f: Forward, align: int) -> dict[str, Any]:
    """The compile-time facts that every kernel takes."""
    return {
        "GROUP": f.q.shape[1] // f.k.shape[1],
        "D": f.q.shape[2],
        "BLOCK_D": width(f.q.shape[2]),
        "HAS_PREFIX": f.prefix_k is not None,
        "HAS_ROWS": f.rows is not None,
        "ALIGN": align,
        "WIDEN": _widen(f),
        **FUSE,
    }


def _widen(f: Forward) -> bool:
    """Triton's interpreter has no arithmetic of bf16, and truncates to it."""
    return env.triton_interpret() and f.q.dtype == torch.bfloat16


def _sizes(q: Tensor, k: Tensor, who: KvEnd) -> Sizes:
    return Sizes(
        documents=len(who.cu_k) - 1,
        max_q=who.max_q,
        max_keys=who.max_keys,
        group=q.shape[1] // k.shape[1],
        groups=k.shape[1],
        head_dim=q.shape[2],
        item=q.element_size(),
        processors=processors(q.device),
    )


def scratch_bytes(q: Tensor, k: Tensor, who: KvEnd) -> int:
    """Bytes of workspace: the parts of a pass that is split over keys, fp32."""
    splits = plan_forward(_sizes(q, k, who)).splits
    return 4 * splits * (q.numel() + q.shape[0] * q.shape[1]) if splits > 1 else 0


def _parts(f: Forward, splits: int) -> tuple[Tensor, Tensor]:
    """fp32 ``[splits, T, H, D]`` and ``[splits, T, H]``."""
    need = scratch_bytes(f.q, f.k, f.who)
    memory = f.workspace
    if memory is None:
        memory = torch.empty(need, dtype=torch.uint8, device=f.q.device)
    if memory.numel() < need:
        raise InputError(
            f"shared_attention: workspace must hold {need} bytes, got {memory.numel()}"
        )
    both = memory[:need].view(torch.float32)
    first = splits * f.q.numel()
    return both[:first].view(splits, *f.q.shape), both[first:].view(splits, *f.lse.shape)


def _documents(f: Forward) -> int:
    return len(f.who.cu_k) - 1


def _ranges(f: Forward) -> tuple[Tensor, ...]:
    who, none = f.who, f.who.cu_k
    index = (_or(who.cu_prefix, none), _or(who.prefix_index, none))
    return (who.cu_q, who.cu_k, who.kv_end, *index, _or(f.rows, none))


def _or(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    """An absent argument still needs a pointer; the kernel does not follow it."""
    return stand_in if tensor is None else tensor


def _align(tensors: Sequence[Tensor]) -> int:
    """How many elements all strides are multiples of, as far as wide loads profit."""
    strides = [stride for tensor in tensors for stride in tensor.stride()[:2]]
    return WIDE_LOAD if all(stride % WIDE_LOAD == 0 for stride in strides) else 1


def _strides(tensor: Tensor, align: int) -> tuple[int, int]:
    row, head, _ = tensor.stride()
    return row // align, head // align


def _in_turn(runs: Sequence[Callable[[], Any]], where: Tensor) -> Run:
    """One call of them all, on the device of ``where``."""

    def run() -> None:
        with torch.cuda.device_of(where):
            for each in runs:
                each()

    return run
