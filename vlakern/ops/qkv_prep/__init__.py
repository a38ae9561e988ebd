"""From a layer's projections to attention's inputs: QK-norm, RoPE, and K and V in joint order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlakern.ops._dispatch import Backend, Key, made_by, resolve
from vlakern.ops._refusals import any_of, needs_cpu, needs_triton, never, only_dtypes
from vlakern.ops._torch import key_for, runs_directly, wants_gradients
from vlakern.ops.qkv_prep._check import Call, Expert, check, check_outputs
from vlakern.ops.qkv_prep.reference import Gradients, split_heads

__all__ = ["BACKENDS", "BoundPrep", "qkv_prep", "qkv_prep_out"]

KERNELS = "vlakern.ops.qkv_prep._kernels"
FLOATS = only_dtypes("float32", "bfloat16", "float16")
WIDEST_TRITON = 16384  # one program holds the heads of a row in registers


def _fits_a_program(key: Key) -> str | None:
    dims = dict(key.dims)
    width = dims.get("H", 1) * dims.get("D", 1)
    return f"takes H·D of at most {WIDEST_TRITON}, not {width}" if width > WIDEST_TRITON else None


BACKENDS = (
    Backend("triton", made_by(KERNELS, "triton"), any_of(needs_triton, FLOATS, _fits_a_program)),
    Backend("cpu", made_by(KERNELS, "cpu"), any_of(needs_cpu, FLOATS)),
    Backend("reference", made_by(KERNELS, "reference"), never),
)


@dataclass(frozen=True)
class BoundPrep:
    """A checked and resolved ``qkv_prep_out`` on fixed memory; calling it does it again."""

    tensors: tuple[Any, ...]  # kept alive, since native kernels hold only their addresses
    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()


class Settings(NamedTuple):
    """What is not a tensor."""

    heads: int
    groups: int
    eps: float
    plus_one: bool
    backend: str


def qkv_prep(
    qkv: Sequence[Tensor],
    q_weight: Sequence[Tensor],
    k_weight: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    rows: Sequence[Tensor],
    *,
    heads: int,
    groups: int,
    eps: float = 1e-6,
    plus_one: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """RMS QK-norm and rotary position embedding, with K and V written to their joint rows.

    Letters: T joint rows, E rows of one expert (they add up to T), H query heads, G key-value
    heads, D head dim. Differentiable in all floating arguments; weight gradients are summed in an
    order that depends on the shapes alone. Arithmetic is fp32 (fp64 for fp64), rounded once.

    Args:
        qkv: per expert one tensor ``[E, (H + 2G)·D]``, heads of q, then k, then v; or, for
            projections that are apart, three: q ``[E, H·D]``, k ``[E, G·D]``, v ``[E, G·D]`` of the
            first expert, then those of the next. All of one dtype.
        q_weight, k_weight: per expert ``[D]``; empty for no QK-norm.
        cos, sin: ``[T, D / 2]`` fp32, by joint row; element i turns the pair (i, i + D/2).
        rows: per expert int32 ``[E]``, the joint row of each of its tokens; together a permutation
            of ``[0, T)``. ``shared_attention`` takes the inverse: the concatenation c of these
            lists says that row i of q is joint row ``c[i]``, and its ``rows`` is ``argsort(c)``.
        heads, groups: H and G.
        eps: added to the mean square.
        plus_one: the norms scale by 1 plus the weight (Gemma).
        backend: ``auto`` or the name of one.

    Returns:
        q ``[T, H, D]``, expert after expert, and k and v ``[T, G, D]`` in joint order, in qkv's
        dtype.

    Raises:
        InputError: a shape, dtype or device does not fit, or rows are not a permutation (the cpu
            backend looks).
        Unsupported: the named backend refuses the case.
    """
    lists = (list(qkv), list(q_weight), list(k_weight), cos, sin, list(rows))
    settings = Settings(heads, groups, eps, plus_one, backend)
    flat = _flatten(*lists)
    if not runs_directly(flat):
        return _qkv_prep(*lists, *settings)
    if wants_gradients(flat):
        return _Eager.apply(len(qkv), len(q_weight), settings, *flat)  # type: ignore[return-value]
    return _forward(*lists, *settings)


def qkv_prep_out(
    qkv: Sequence[Tensor],
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    rows: Tensor,
    *,
    q_out: Tensor,
    k_out: Tensor,
    v_out: Tensor,
    heads: int,
    groups: int,
    row_offset: int = 0,
    eps: float = 1e-6,
    plus_one: bool = False,
    backend: str = "auto",
) -> BoundPrep:
    """One expert of ``qkv_prep`` into given tensors, without gradients.

    ``qkv`` holds one tensor or three. ``q_out [E, H, D]`` may be a slice of the joint q, and
    ``k_out`` and ``v_out [S, G, D]`` a cache that is longer than T: token e goes to row
    ``rows[e] + row_offset`` of both, its angle is row ``rows[e]`` of cos and sin. Outputs have one
    dtype, which may differ from qkv's; elements of a head must be adjacent in memory. Returns the
    call that was done: an engine whose buffers stay in place makes it again, without any checks.
    """
    q_weights, k_weights = ([] if one is None else [one] for one in (q_weight, k_weight))
    check(qkv, q_weights, k_weights, cos, sin, [rows], heads, groups, eps)
    call = _call(qkv, q_weights, k_weights, cos, sin, [rows], heads, groups, eps, plus_one, False)
    check_outputs(call, q_out, k_out, v_out)
    kernels: Any = resolve("qkv_prep", _key(call, q_out), backend)
    tensors = (call, q_out, k_out, v_out)
    bound = BoundPrep(tensors, kernels.forward(call, [q_out], k_out, v_out, row_offset))
    bound()
    return bound


def _call(
    qkv: Sequence[Tensor],
    q_weight: Sequence[Tensor],
    k_weight: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    rows: Sequence[Tensor],
    heads: int,
    groups: int,
    eps: float,
    plus_one: bool,
    complete: bool = True,
) -> Call:
    parts = split_heads(qkv, len(rows), heads, groups)
    norms = zip(q_weight, k_weight, strict=True) if q_weight else [(None, None)] * len(rows)
    experts = tuple(
        Expert(*one, at, *pair) for one, at, pair in zip(parts, rows, norms, strict=True)
    )
    return Call(experts, cos, sin, eps, plus_one, complete)


def _key(call: Call, like: Tensor) -> Key:
    first = call.experts[0]
    given = (first.q, like, first.q_weight, first.k_weight)
    dtypes = tuple(one.dtype for one in given if one is not None)
    return key_for(first.q.device, dtypes, (("H", first.q.shape[1]), ("D", first.q.shape[2])))


def _adjacent(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Kernels want the elements of a head adjacent; a copy is rare."""
    return [x if x.stride(-1) == 1 or x.shape[-1] < 2 else x.contiguous() for x in tensors]


def _forward(
    qkv: list[Tensor],
    q_weight: list[Tensor],
    k_weight: list[Tensor],
    cos: Tensor,
    sin: Tensor,
    rows: list[Tensor],
    heads: int,
    groups: int,
    eps: float,
    plus_one: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    check(qkv, q_weight, k_weight, cos, sin, rows, heads, groups, eps)
    made = _empty(qkv, rows, heads, groups)
    q_weights, k_weights = _adjacent(q_weight), _adjacent(k_weight)
    angle_cos, angle_sin = _adjacent((cos, sin))
    tensors = (_adjacent(qkv), q_weights, k_weights, angle_cos, angle_sin)
    call = _call(*tensors, rows, heads, groups, eps, plus_one)
    kernels: Any = resolve("qkv_prep", _key(call, made[0]), backend)
    kernels.forward(call, made[0].split([len(one) for one in rows]), *made[1:], 0)()
    return made


def _empty(
    qkv: list[Tensor], rows: list[Tensor], heads: int, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    count, first = sum(one.shape[0] for one in rows), qkv[0]
    all_heads = heads + 2 * groups if len(qkv) == len(rows) else heads
    head_dim = first.shape[1] // all_heads

    def of(heads: int) -> Tensor:
        return torch.empty((count, heads, head_dim), dtype=first.dtype, device=first.device)

    return of(heads), of(groups), of(groups)


_qkv_prep = torch.library.custom_op("vlakern::qkv_prep", _forward, mutates_args=())


@_qkv_prep.register_fake
def _(qkv, q_weight, k_weight, cos, sin, rows, heads, groups, eps, plus_one, backend):
    return _empty(qkv, rows, heads, groups)


def bound_gradients(
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    qkv: list[Tensor],
    q_weight: list[Tensor],
    k_weight: list[Tensor],
    cos: Tensor,
    sin: Tensor,
    rows: list[Tensor],
    heads: int,
    groups: int,
    eps: float,
    plus_one: bool,
    backend: str,
    angles: bool,
) -> tuple[list[Tensor], Callable[[], None]]:
    """Memory for the gradients of qkv, q_weight, k_weight and, if ``angles``, of cos and sin, and
    the call that fills it."""
    q_weights, k_weights = _adjacent(q_weight), _adjacent(k_weight)
    angle_cos, angle_sin = _adjacent((cos, sin))
    tensors = (_adjacent(qkv), q_weights, k_weights, angle_cos, angle_sin)
    call = _call(*tensors, rows, heads, groups, eps, plus_one)
    found = _empty_gradients(qkv, q_weight, k_weight, cos, sin, angles)
    many, norms = len(qkv), len(q_weight)
    parts = split_heads(found[:many], len(rows), heads, groups)
    of_q, of_k = found[many : many + norms], found[many + norms : many + 2 * norms]
    of_angles = found[-2:] if angles else (None, None)
    records = [
        Gradients(*part, of_q[i] if norms else None, of_k[i] if norms else None, *of_angles)  # type: ignore[arg-type]
        for i, part in enumerate(parts)
    ]
    kernels: Any = resolve("qkv_prep", _key(call, grad_q), backend)
    dq, dk, dv = _adjacent((grad_q, grad_k, grad_v))
    of_experts = dq.split([len(one) for one in rows])
    return found, partial(kernels.backward, call, of_experts, dk, dv, records)


def _gradients(
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    qkv: list[Tensor],
    q_weight: list[Tensor],
    k_weight: list[Tensor],
    cos: Tensor,
    sin: Tensor,
    rows: list[Tensor],
    heads: int,
    groups: int,
    eps: float,
    plus_one: bool,
    backend: str,
    angles: bool,
) -> list[Tensor]:
    """Gradients of qkv, q_weight, k_weight and, if ``angles``, of cos and sin."""
    lists = (qkv, q_weight, k_weight, cos, sin, rows)
    settings = (heads, groups, eps, plus_one, backend, angles)
    found, fill = bound_gradients(grad_q, grad_k, grad_v, *lists, *settings)
    fill()
    return found


def _empty_gradients(
    qkv: list[Tensor],
    q_weight: list[Tensor],
    k_weight: list[Tensor],
    cos: Tensor,
    sin: Tensor,
    angles: bool,
) -> list[Tensor]:
    like = [*qkv, *q_weight, *k_weight, *((cos, sin) if angles else ())]
    return [torch.empty(one.shape, dtype=one.dtype, device=one.device) for one in like]


_qkv_prep_backward = torch.library.custom_op(
    "vlakern::qkv_prep_backward", _gradients, mutates_args=()
)


@_qkv_prep_backward.register_fake
def _(
    grad_q, grad_k, grad_v, qkv, q_weight, k_weight, cos, sin, rows, heads, groups, eps, plus_one,
    backend, angles,
):  # fmt: skip
    return _empty_gradients(qkv, q_weight, k_weight, cos, sin, angles)


def _flatten(
    qkv: list[Tensor],
    q_weight: list[Tensor],
    k_weight: list[Tensor],
    cos: Tensor,
    sin: Tensor,
    rows: list[Tensor],
) -> tuple[Tensor, ...]:
    return (*qkv, *q_weight, *k_weight, cos, sin, *rows)


def _unflatten(many: int, norms: int, flat: Sequence[Tensor]) -> tuple[Any, ...]:
    """The inverse of ``_flatten``."""
    end = many + 2 * norms
    weights = list(flat[many : many + norms]), list(flat[many + norms : end])
    return (list(flat[:many]), *weights, flat[end], flat[end + 1], list(flat[end + 2 :]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    lists, ctx.settings = inputs[:6], inputs[6:]
    ctx.counts = len(lists[0]), len(lists[1])
    ctx.save_for_backward(*_flatten(*lists))


def _backward_lists(ctx: Any, angles: bool, *grads: Tensor) -> tuple[Any, ...]:
    many, norms = ctx.counts
    saved = ctx.saved_tensors  # read once: activation checkpointing computes it when asked
    lists: Any = _unflatten(many, norms, saved)
    call: Any = _gradients if runs_directly((*grads, *saved)) else _qkv_prep_backward
    found = call(*grads, *lists, *ctx.settings, angles)
    found = [*found, None, None][: sum(ctx.counts) + ctx.counts[1] + 2]
    return *_unflatten(many, norms, found)[:5], [None] * len(lists[5])


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    return *_backward_lists(ctx, any(ctx.needs_input_grad[3:5]), *grads), *[None] * 5


_qkv_prep.register_autograd(_backward, setup_context=_keep)


class _Eager(torch.autograd.Function):
    """The same for direct calls; autograd sees only tensors that are arguments themselves."""

    @staticmethod
    def forward(many: int, norms: int, settings: Settings, *flat: Tensor) -> Any:
        arguments: Any = (*_unflatten(many, norms, flat), *settings)
        return _forward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        many, norms, settings, *flat = inputs
        _keep(ctx, (*_unflatten(many, norms, flat), *settings), output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        first = 3 + ctx.counts[0] + 2 * ctx.counts[1]
        angles = any(ctx.needs_input_grad[first : first + 2])
        return None, None, None, *_flatten(*_backward_lists(ctx, angles, *grads))
