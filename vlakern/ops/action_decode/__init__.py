"""The fused end of a policy: denormalise a chunk, decode end-effector frames, gather columns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlakern.errors import InputError, Unsupported
from vlakern.ops._dispatch import Backend, made_by, resolve
from vlakern.ops._refusals import any_of, needs_cpu, never, only_dtypes
from vlakern.ops._torch import key_for
from vlakern.ops.action_decode._check import Tensors, check
from vlakern.ops.action_decode.reference import FRAMES, KINDS, compute_dtype

__all__ = ["BACKENDS", "FRAMES", "KINDS", "BoundDecode", "action_decode", "action_decode_out"]

KERNELS = "vlakern.ops.action_decode._kernels"
FLOATS = only_dtypes("float32", "bfloat16", "float16")
BACKENDS = (
    Backend("cpu", made_by(KERNELS, "cpu"), any_of(needs_cpu, FLOATS)),
    Backend("reference", made_by(KERNELS, "reference"), never),
)


@dataclass(frozen=True)
class BoundDecode:
    """A checked and resolved ``action_decode_out`` on fixed memory; calling it decodes again."""

    tensors: Tensors  # kept alive, since native kernels hold only their addresses
    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()


def action_decode(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    base: Tensor,
    copies: Tensor,
    affine: Tensor,
    poses: Tensor,
    *,
    frame: str,
    width: int,
    backend: str = "auto",
) -> Tensor:
    """A normalised chunk of actions as the commands of a robot, see ``reference.py``.

    Letters: B rows, H positions of the chunk, A slots, N columns, C copies, P poses. It has no
    gradient: it is the end of inference. Training encodes targets with ``vlakern.space`` instead.

    Args:
        x: normalised chunk ``[B, H, A]``, fp32, bf16, fp16 (fp64: reference only; the other
            floating arguments are then fp64, too).
        scale: ``[A]`` fp32; value = x·scale + offset.
        offset: ``[A]`` fp32.
        base: pose of every end-effector at its row's chunk start, ``[B, P, 7]`` fp32: position [m]
            and unit quaternion w, x, y, z. Where that has not norm 1 within 1e-3 all that depends
            on it is NaN; a pose without rotation does not read it.
        copies: int32 ``[C, 3]``: source slot, column, binary. A binary value is -1 or 1, by the
            sign of x, before it is denormalised; NaN stays NaN.
        affine: ``[C, 2]`` fp32: what a copy writes is value·affine[0] + affine[1].
        poses: int32 ``[P, 6]``: position slot, rotation slot, its kind (place in ``KINDS``), and
            the same three of the columns. Both rotations are -1 for a bare position, which only
            the world frames decode. A quaternion or 6-D rotation in x need not be normalised; a
            degenerate one gives NaN in what depends on it.
        frame: one of ``FRAMES``.
        width: N; every column is written by exactly one copy or pose.
        backend: ``auto`` or the name of one.

    Returns:
        ``[B, H, N]`` fp32. Quaternions have w ≥ 0, axis-angles an angle in [0, π].

    Raises:
        InputError: a shape, dtype, device or entry of a table does not fit.
        Unsupported: the named backend refuses the case; or a gradient is asked for.
    """
    return _action_decode(x, scale, offset, base, copies, affine, poses, frame, width, backend)


def action_decode_out(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    base: Tensor,
    copies: Tensor,
    affine: Tensor,
    poses: Tensor,
    *,
    frame: str,
    out: Tensor,
    backend: str = "auto",
) -> BoundDecode:
    """``action_decode`` into ``out [B, H, N]``, without torch.library's overhead.

    Returns the decoding that was done: a control loop that writes the next chunk and base poses
    into the memory of ``x`` and ``base`` calls it again, without checks and allocations. The other
    arguments are settled here and must not change. ``out`` may not share memory with ``x`` or
    ``base``.
    """
    tensors = Tensors(x, scale, offset, base, copies, affine, poses, out)
    bound = _bind(tensors, frame, backend)
    bound()
    return bound


@torch.library.custom_op("vlakern::action_decode", mutates_args=())
def _action_decode(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    base: Tensor,
    copies: Tensor,
    affine: Tensor,
    poses: Tensor,
    frame: str,
    width: int,
    backend: str,
) -> Tensor:
    if width < 0:
        raise InputError(f"action_decode: width must be 0 or more, got {width}")
    out = _empty(x, width)
    tensors = Tensors(x, scale, offset, base, copies, affine, poses, out)
    _bind(tensors, frame, backend)()
    return out


def _bind(tensors: Tensors, frame: str, backend: str) -> BoundDecode:
    check(tensors, frame)
    key = key_for(tensors.x.device, (tensors.x.dtype,))
    return BoundDecode(tensors, resolve("action_decode", key, backend)(tensors, frame))


def _empty(x: Tensor, width: int) -> Tensor:
    shape = (*x.shape[:2], width)
    return torch.empty(shape, dtype=compute_dtype(x), device=x.device)


@_action_decode.register_fake
def _(x, scale, offset, base, copies, affine, poses, frame, width, backend):
    return _empty(x, width)


def _backward(ctx: Any, grad: Tensor) -> None:
    raise Unsupported(
        "action_decode has no gradient; decode with vlakern.space.frames where one is needed"
    )


_action_decode.register_autograd(_backward)
