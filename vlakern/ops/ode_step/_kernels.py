"""The backends of ``ode_step`` under one signature; each function here makes one kernel.

A kernel binds tensors and stage to a call without arguments, which may be made again and again on
the same memory.
"""

from collections.abc import Callable
from functools import partial

import torch

from vlakern import env
from vlakern.ops import _native
from vlakern.ops._torch import stream_of
from vlakern.ops.ode_step._check import Tensors
from vlakern.ops.ode_step.reference import STAGES, led_velocity, ode_step_reference

__all__ = ["cpu", "cuda", "reference", "triton"]

Kernel = Callable[[Tensors, str], Callable[[], None]]


def _views(t: Tensors) -> list[_native.View | None]:
    """What native code takes: tau as ``[B, T]``, the mask as ``[B, A]`` with stride 0 if shared."""
    if t.tau.ndim == 1:
        t = t._replace(tau=t.tau[:, None], tau_out=t.tau_out[:, None])
    if t.slot_mask is not None:
        t = t._replace(slot_mask=t.slot_mask.expand(t.x.shape[0], t.x.shape[2]))
    given = t._asdict()
    assert given.pop("led") is None  # refused before
    return [_native.view(tensor) for tensor in given.values()]


def cpu() -> Kernel:
    """The native CPU kernel, on as many threads as torch uses."""
    native, isa = _native.cpu_module(), env.cpu_isa()
    native.selected_isa(isa)  # raises Unsupported here and not in the first call

    def bind(t: Tensors, stage: str) -> Callable[[], None]:
        threads = torch.get_num_threads()
        return partial(native.ode_step, *_views(t), t.tau.ndim == 2, STAGES[stage], isa, threads)

    return bind


def cuda() -> Kernel:
    """The native CUDA kernel, on the current stream of x's device."""
    native = _native.cuda_module()

    def bind(t: Tensors, stage: str) -> Callable[[], None]:
        step = partial(native.ode_step, *_views(t), t.tau.ndim == 2, STAGES[stage])

        def run() -> None:
            with torch.cuda.device(t.x.device):
                step(stream_of(t.x))

        return run

    return bind


def triton() -> Kernel:
    """The Triton kernel."""
    from vlakern.ops.ode_step.triton_kernels import launch

    return partial(partial, launch)


def reference() -> Kernel:
    """The definition."""

    return partial(partial, _reference)


def _reference(t: Tensors, stage: str) -> None:
    if t.led is not None:
        t.v.copy_(led_velocity(t.v, t.led))
    x_next, tau_next = ode_step_reference(
        t.x, t.v, t.tau, t.dtau, stage, t.v0, t.frozen, t.frozen_len, t.slot_mask
    )
    t.x_out.copy_(x_next)
    t.tau_out.copy_(tau_next)
