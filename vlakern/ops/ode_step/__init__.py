"""The fused batched flow-matching update: one stage of an ODE step for every row at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlakern.ops._dispatch import Backend, Key, made_by, resolve
from vlakern.ops._refusals import any_of, needs_cpu, needs_cuda, needs_triton, never, only_dtypes
from vlakern.ops._torch import key_for
from vlakern.ops.ode_step._check import Tensors, check
from vlakern.ops.ode_step.reference import Led, ode_step_gradients

__all__ = ["BACKENDS", "BoundStep", "Led", "ode_step", "ode_step_out"]

KERNELS = "vlakern.ops.ode_step._kernels"
FLOATS = only_dtypes("float32", "bfloat16", "float16")
LED = "led"  # flag of a key


def _only_free(key: Key) -> str | None:
    return "it leads no velocity to decided actions" if LED in key.flags else None


BACKENDS = (
    Backend("cuda", made_by(KERNELS, "cuda"), any_of(needs_cuda, FLOATS, _only_free)),
    Backend("triton", made_by(KERNELS, "triton"), any_of(needs_triton, FLOATS)),
    Backend("cpu", made_by(KERNELS, "cpu"), any_of(needs_cpu, FLOATS, _only_free)),
    Backend("reference", made_by(KERNELS, "reference"), never),
)


@dataclass(frozen=True)
class BoundStep:
    """A checked and resolved ``ode_step_out`` on fixed memory; calling it does the step again."""

    tensors: Tensors  # kept alive, since native kernels hold only their addresses
    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()


def ode_step(
    x: Tensor,
    v: Tensor,
    tau: Tensor,
    dtau: Tensor,
    *,
    stage: str = "euler",
    v0: Tensor | None = None,
    frozen: Tensor | None = None,
    frozen_len: Tensor | None = None,
    slot_mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One stage of an explicit step along the flow, ``x + dτ·(c0·v0 + c1·v)``.

    Letters: B rows, H positions of the chunk, A slots. Differentiable in all floating arguments.

    Args:
        x: state at the step's start, ``[B, H, A]``, fp32, bf16, fp16 (fp64: reference only).
        v: velocity ``[B, H, A]``, of any of these dtypes.
        tau: flow time of the rows, ``[B]``, or of every position, ``[B, H]``; fp32.
        dtau: step of each row ``[B]``, fp32.
        stage: ``euler``, ``midpoint_half``, ``midpoint``, ``heun_predict`` or ``heun``, see
            ``reference.py`` for the coefficients.
        v0: first-stage velocity ``[B, H, A]`` in v's dtype, for ``heun`` alone.
        frozen: values that the leading positions keep, ``[B, H, A]`` in x's dtype: the actions that
            are already under way in real-time chunking.
        frozen_len: how many leading positions of each row are frozen, int32 ``[B]``.
        slot_mask: which slots exist, bool or uint8 ``[A]`` or ``[B, A]``. An absent slot is not
            integrated: it keeps x, whatever v says. In a frozen position frozen wins.
        backend: ``auto`` or the name of one.

    Returns:
        ``x_next [B, H, A]`` in x's dtype, computed in fp32 and rounded once, and ``tau_next`` of
        tau's shape; with tau per position the frozen ones carry 1.

    Raises:
        InputError: a shape, dtype or device does not fit.
        Unsupported: the named backend refuses the case.
    """
    return _ode_step(x, v, tau, dtau, stage, v0, frozen, frozen_len, slot_mask, backend)


def ode_step_out(
    x: Tensor,
    v: Tensor,
    tau: Tensor,
    dtau: Tensor,
    *,
    x_out: Tensor,
    tau_out: Tensor,
    stage: str = "euler",
    v0: Tensor | None = None,
    frozen: Tensor | None = None,
    frozen_len: Tensor | None = None,
    slot_mask: Tensor | None = None,
    led: Led | None = None,
    backend: str = "auto",
) -> BoundStep:
    """``ode_step`` into given tensors, without torch.library's overhead and without gradients.

    ``x_out`` may be ``x`` and ``tau_out`` may be ``tau``; no other overlap is allowed, but of what
    is read alone. With ``led`` the velocity is corrected before it moves x, in ``v`` itself, so
    that a later stage takes it as ``v0``; x and v are fp32 then, and rows at ``most`` 0 keep
    theirs, whatever stands in the other tensors. Returns the step that was done: an engine whose
    buffers stay in place calls it again, without any checks.
    """
    tensors = Tensors(x, v, v0, tau, dtau, frozen, frozen_len, slot_mask, x_out, tau_out, led)
    bound = _bind(tensors, stage, backend)
    bound()
    return bound


@torch.library.custom_op("vlakern::ode_step", mutates_args=())
def _ode_step(
    x: Tensor,
    v: Tensor,
    tau: Tensor,
    dtau: Tensor,
    stage: str,
    v0: Tensor | None,
    frozen: Tensor | None,
    frozen_len: Tensor | None,
    slot_mask: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    outputs = _empty(x, tau)
    tensors = Tensors(x, v, v0, tau, dtau, frozen, frozen_len, slot_mask, *outputs)
    _bind(tensors, stage, backend)()
    return outputs


def _bind(tensors: Tensors, stage: str, backend: str) -> BoundStep:
    check(tensors, stage)
    flags = frozenset() if tensors.led is None else frozenset({LED})
    key = key_for(tensors.x.device, (tensors.x.dtype, tensors.v.dtype), flags=flags)
    return BoundStep(tensors, resolve("ode_step", key, backend)(tensors, stage))


def _empty(x: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """Contiguous, so that an input that is expanded does not make an output that is."""
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty(tau.shape, dtype=tau.dtype, device=tau.device),
    )


@_ode_step.register_fake
def _(x, v, tau, dtau, stage, v0, frozen, frozen_len, slot_mask, backend):
    return _empty(x, tau)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, v, tau, dtau, stage, v0, frozen, frozen_len, slot_mask, _ = inputs
    ctx.save_for_backward(v, dtau, v0, frozen_len, slot_mask)
    ctx.stage = stage
    given = {"x": x, "v": v, "tau": tau, "dtau": dtau, "v0": v0, "frozen": frozen}
    ctx.dtypes = {name: one.dtype for name, one in given.items() if one is not None}


def _backward(ctx: Any, grad_x: Tensor, grad_tau: Tensor) -> tuple[Tensor | None, ...]:
    v, dtau, v0, frozen_len, slot_mask = ctx.saved_tensors
    found = ode_step_gradients(grad_x, grad_tau, v, dtau, ctx.stage, v0, frozen_len, slot_mask)
    grads = {name: found[name].to(dtype) for name, dtype in ctx.dtypes.items()}
    leading = (grads["x"], grads["v"], grads["tau"], grads["dtau"])
    return (*leading, None, grads.get("v0"), grads.get("frozen"), None, None, None)


_ode_step.register_autograd(_backward, setup_context=_keep)
