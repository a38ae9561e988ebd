"""The two ends of a flow-matching training step: noisy actions, and the masked loss on velocities.

Noise comes from a counter, so it is drawn where it is used and never stored: the loss draws again
what the mixture drew. It depends on the seed and on the address of its row alone, not on the order
of the batch, the number of threads or the backend.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlakern.errors import InputError, Unsupported
from vlakern.ops._dispatch import Backend, made_by, resolve
from vlakern.ops._refusals import any_of, needs_cpu, needs_triton, never, only_dtypes
from vlakern.ops._torch import eager_function, key_for, runs_directly, wants_gradients
from vlakern.ops.flow_loss._check import Loss, Mix, Source, check_loss, check_mix
from vlakern.ops.flow_loss.reference import Law, compute_dtype

__all__ = [
    "BACKENDS",
    "BoundFlow",
    "flow_loss",
    "flow_loss_out",
    "flow_mix",
    "flow_mix_out",
    "flow_noise",
]

KERNELS = "vlakern.ops.flow_loss._kernels"
FLOATS = only_dtypes("float32", "bfloat16", "float16")
BACKENDS = (
    Backend("triton", made_by(KERNELS, "triton"), any_of(needs_triton, FLOATS)),
    Backend("cpu", made_by(KERNELS, "cpu"), any_of(needs_cpu, FLOATS)),
    Backend("reference", made_by(KERNELS, "reference"), never),
)


@dataclass(frozen=True)
class BoundFlow:
    """A checked and resolved call on fixed memory; calling it computes again."""

    tensors: Mix | Loss  # kept alive, since native kernels hold only their addresses
    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()


def flow_mix(
    action: Tensor,
    *,
    seed: int | None = None,
    rows: Tensor | None = None,
    noise: Tensor | None = None,
    slots: Tensor | None = None,
    tau: Tensor | None = None,
    law: str = "beta",
    alpha: float = 1.5,
    s: float = 0.999,
    samples: int = 1,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Points on the paths from noise to actions, ``x_τ = (1 - τ)·z + τ·a``.

    Letters: B samples, R = B · ``samples`` rows, those of a sample next to each other, H positions,
    A slots. It has no gradient.

    Args:
        action: ``[B, H, A]`` fp32 (fp64: reference only, and all floating arguments are fp64 then).
        seed: 0 to 2^63 - 1; needed where noise or τ is drawn. Noise is standard normal, see
            ``philox.py``; every backend draws the same up to the rounding of ln, sqrt, sin and cos,
            2e-6 at most.
        rows: int64 ``[R]``, the address of each row's draws, by default its index. With one seed
            for a run and addresses that do not repeat, a training step needs no other seed.
        noise: ``[R, H, A]`` fp32, in place of drawn noise.
        slots: ``[B, A]`` fp32 or bool, multiplies the noise: 0 for slots that a robot has not.
        tau: flow time of each row ``[R]`` or position ``[R, H]``, fp32; drawn without it.
        law: ``uniform`` on [0, 1), ``beta`` or ``logit_normal``, see ``reference.py``.
        alpha, s: of the beta law.
        samples: rows of each sample.
        dtype: of x, fp32 by default.
        backend: ``auto`` or the name of one.

    Returns:
        ``x_τ [R, H, A]``, computed in fp32 and rounded once, and τ ``[R]`` or ``[R, H]`` fp32.

    Raises:
        InputError: a shape, dtype or device does not fit, or a seed is missing.
        Unsupported: the named backend refuses the case; or a gradient is asked for.
    """
    if seed is None and (noise is None or tau is None):
        raise InputError("flow_mix: seed is needed to draw noise or tau; give it, or both of these")
    if samples < 1:
        raise InputError(f"flow_mix: samples must be at least 1, got {samples}")
    given = (action, seed or 0, rows, noise, _weights(slots, action))
    kind = compute_dtype(action) if dtype is None else dtype
    rest = (tau, law, alpha, s, samples, kind, backend)
    direct = runs_directly((action, noise, slots, tau)) and not wants_gradients((action, noise))
    return _mix(*given, *rest) if direct else _flow_mix(*given, *rest)


def flow_mix_out(
    action: Tensor,
    *,
    x_out: Tensor,
    tau_out: Tensor,
    seed: int = 0,
    rows: Tensor | None = None,
    noise: Tensor | None = None,
    slots: Tensor | None = None,
    tau: Tensor | None = None,
    law: str = "beta",
    alpha: float = 1.5,
    s: float = 0.999,
    backend: str = "auto",
) -> BoundFlow:
    """``flow_mix`` into given tensors, which share no memory with the inputs.

    Returns the call that was done; new values in ``rows`` make it draw anew.
    """
    source = Source(action, seed, rows, noise, slots)
    bound = _bind_mix(Mix(source, tau, Law(law, alpha, s), x_out, tau_out), backend)
    bound()
    return bound


def flow_noise(
    rows: Tensor, positions: int, slots: int, *, seed: int, backend: str = "auto"
) -> Tensor:
    """The noise of these addresses, fp32 ``[R, H, A]``: what ``flow_mix`` draws for them."""
    nothing = torch.zeros((len(rows), positions, slots), device=rows.device)
    start = torch.zeros(len(rows), device=rows.device)
    return flow_mix(nothing, seed=seed, rows=rows, tau=start, backend=backend)[0]


def flow_loss(
    velocity: Tensor,
    action: Tensor,
    *,
    seed: int | None = None,
    rows: Tensor | None = None,
    noise: Tensor | None = None,
    slots: Tensor | None = None,
    mask: Tensor | None = None,
    group: Tensor | None = None,
    groups: int = 1,
    weights: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The masked squared distance of velocities to ``a - z``, averaged over embodiments.

    ``L_g = Σ m·(v - (a - z))² / (Σ m + 1e-8)`` over the rows of embodiment g, and the loss is
    ``Σ w_g·L_g / Σ w_g`` over the embodiments that occur in the batch. With one embodiment that is
    :func:`vlakern.flow.masked_loss`, except that elements with m = 0 may also be NaN. The target is
    never stored. Differentiable in ``velocity`` alone, once.

    Letters: B samples, R rows, R / B of each sample next to each other, H positions, A slots, G
    embodiments.

    Args:
        velocity: ``[R, H, A]`` fp32, bf16 or fp16.
        action: ``[B, H, A]`` fp32.
        seed, rows, noise, slots: as they were for ``flow_mix``.
        mask: ``[B, H, A]`` fp32, bool or uint8: the weight of each element; None counts all.
        group: int32 ``[B]``, the embodiment of each sample, 0 to ``groups`` - 1; others are refused
            on the CPU and must not occur on a GPU.
        groups: G.
        weights: ``[G]`` fp32, 0 or more and not all 0 among those that occur; 1 by default.
        backend: ``auto`` or the name of one.

    Returns:
        The loss, fp32 without dimensions; 0 where nothing counts. Errors are fp32 and their sums
        double (fp32 in the definition), in an order that depends on the shapes alone: the bits do
        not depend on the number of threads.

    Raises:
        InputError: a shape, dtype or device does not fit, or a seed is missing.
        Unsupported: the named backend refuses the case.
    """
    if seed is None and noise is None:
        raise InputError("flow_loss: give the seed of the noise, or the noise itself")
    source = (action, seed or 0, rows, noise, _weights(slots, action))
    given = (velocity, *source, mask, group, weights, groups, backend)
    if not runs_directly((velocity, action, noise, mask, weights)):
        return _flow_loss(*given)[0].squeeze(0)
    return (_eager if wants_gradients((velocity,)) else _loss)(*given)[0].squeeze(0)


def flow_loss_out(
    velocity: Tensor,
    action: Tensor,
    *,
    loss_out: Tensor,
    coefficients_out: Tensor,
    seed: int = 0,
    rows: Tensor | None = None,
    noise: Tensor | None = None,
    slots: Tensor | None = None,
    mask: Tensor | None = None,
    group: Tensor | None = None,
    weights: Tensor | None = None,
    backend: str = "auto",
) -> BoundFlow:
    """``flow_loss`` into ``loss_out [1]``, without gradients.

    ``coefficients_out [G]`` becomes ``2·w_g / Σ w / (Σ m + 1e-8)``: the gradient of the velocity is
    that times ``m·(v - target)``. Both are fp32. Returns the call that was done.
    """
    source = Source(action, seed, rows, noise, slots)
    tensors = Loss(source, velocity, mask, group, weights, loss_out, coefficients_out)
    bound = _bind_loss(tensors, backend)
    bound()
    return bound


def _weights(slots: Tensor | None, action: Tensor) -> Tensor | None:
    return slots.to(action.dtype) if slots is not None and slots.dtype == torch.bool else slots


def _resolved(source: Source, other: Tensor, backend: str) -> Any:
    key = key_for(source.action.device, (source.action.dtype, other.dtype))
    return resolve("flow_loss", key, backend)


def _bind_mix(t: Mix, backend: str) -> BoundFlow:
    check_mix(t)
    return BoundFlow(t, _resolved(t.source, t.x, backend).mix(t))


def _bind_loss(t: Loss, backend: str) -> BoundFlow:
    check_loss(t)
    return BoundFlow(t, _resolved(t.source, t.velocity, backend).loss(t))


def _mix(
    action: Tensor,
    seed: int,
    rows: Tensor | None,
    noise: Tensor | None,
    slots: Tensor | None,
    tau: Tensor | None,
    law: str,
    alpha: float,
    s: float,
    samples: int,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    outputs = _empty_mix(action, tau, samples, dtype)
    source = Source(action, seed, rows, noise, slots)
    _bind_mix(Mix(source, tau, Law(law, alpha, s), *outputs), backend)()
    return outputs


_flow_mix = torch.library.custom_op("vlakern::flow_mix", _mix, mutates_args=())


def _empty_mix(
    action: Tensor, tau: Tensor | None, samples: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    count = action.shape[0] * samples
    shape = (count,) if tau is None else tau.shape
    return (
        torch.empty((count, *action.shape[1:]), dtype=dtype, device=action.device),
        torch.empty(shape, dtype=compute_dtype(action), device=action.device),
    )


@_flow_mix.register_fake
def _(action, seed, rows, noise, slots, tau, law, alpha, s, samples, dtype, backend):
    return _empty_mix(action, tau, samples, dtype)


def _no_gradient(ctx: Any, *grads: Tensor) -> None:
    raise Unsupported("flow_mix has no gradient; use vlakern.flow.interpolate where one is needed")


_flow_mix.register_autograd(_no_gradient)


def _loss(
    velocity: Tensor,
    action: Tensor,
    seed: int,
    rows: Tensor | None,
    noise: Tensor | None,
    slots: Tensor | None,
    mask: Tensor | None,
    group: Tensor | None,
    weights: Tensor | None,
    groups: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The loss ``[1]`` and the coefficients of its gradient ``[G]``."""
    loss, coefficients = _empty_loss(action, groups)
    source = Source(action, seed, rows, noise, slots)
    _bind_loss(Loss(source, velocity, mask, group, weights, loss, coefficients), backend)()
    return loss, coefficients


_flow_loss = torch.library.custom_op("vlakern::flow_loss", _loss, mutates_args=())


def _empty_loss(action: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    options = {"dtype": compute_dtype(action), "device": action.device}
    return torch.empty(1, **options), torch.empty(max(groups, 0), **options)


@_flow_loss.register_fake
def _(velocity, action, seed, rows, noise, slots, mask, group, weights, groups, backend):
    return _empty_loss(action, groups)


def _gradient(
    grad: Tensor,
    velocity: Tensor,
    action: Tensor,
    seed: int,
    rows: Tensor | None,
    noise: Tensor | None,
    slots: Tensor | None,
    mask: Tensor | None,
    group: Tensor | None,
    coefficients: Tensor,
    backend: str,
) -> Tensor:
    out = torch.empty(velocity.shape, dtype=velocity.dtype, device=velocity.device)
    source = Source(action, seed, rows, noise, slots)
    t = Loss(source, velocity, mask, group, None, grad, coefficients)
    _resolved(source, velocity, backend).gradient(t, grad, out)
    return out


_flow_loss_backward = torch.library.custom_op(
    "vlakern::flow_loss_backward", _gradient, mutates_args=()
)


@_flow_loss_backward.register_fake
def _(grad, velocity, action, seed, rows, noise, slots, mask, group, coefficients, backend):
    return torch.empty(velocity.shape, dtype=velocity.dtype, device=velocity.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    velocity, action, seed, rows, noise, slots, mask, group, _, _, backend = inputs
    ctx.save_for_backward(velocity, action, rows, noise, slots, mask, group, output[1])
    ctx.seed, ctx.backend = seed, backend
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    velocity, action, rows, noise, slots, mask, group, coefficients = ctx.saved_tensors
    given = (velocity, action, ctx.seed, rows, noise, slots, mask, group)
    call = _gradient if runs_directly((grad, velocity)) else _flow_loss_backward
    return (call(grad, *given, coefficients, ctx.backend), *[None] * 10)


_flow_loss.register_autograd(_backward, setup_context=_keep)
_eager = eager_function(_loss, _keep, _backward)
