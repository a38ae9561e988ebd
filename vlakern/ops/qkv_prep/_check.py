"""The arguments of one ``qkv_prep`` call, and the one check of them, at the border."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlakern.errors import InputError

__all__ = ["Call", "Expert", "check", "check_outputs"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Expert:
    """One expert's tensors. Letters: E its rows, H query heads, G key-value heads, D head dim."""

    q: Tensor  # [E, H, D]
    k: Tensor  # [E, G, D]
    v: Tensor  # [E, G, D]
    rows: Tensor  # [E] int32, its joint rows
    q_weight: Tensor | None  # [D]
    k_weight: Tensor | None  # [D]


@dataclass(frozen=True)
class Call:
    """What every backend takes: the experts, the angles by joint row, and the settings.

    ``complete``: the experts' rows are together a permutation of the joint rows.
    """

    experts: tuple[Expert, ...]
    cos: Tensor  # [T, D / 2]
    sin: Tensor  # [T, D / 2]
    eps: float
    plus_one: bool
    complete: bool


def check(
    qkv: Sequence[Tensor],
    q_weight: Sequence[Tensor],
    k_weight: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    rows: Sequence[Tensor],
    heads: int,
    groups: int,
    eps: float,
) -> int:
    """Raises InputError for the first argument that does not fit the others; returns D."""
    count = len(rows)
    if count == 0 or len(qkv) not in (count, 3 * count):
        raise InputError(
            f"qkv_prep: qkv must be one tensor per expert, or q, k and v of each; got {len(qkv)}"
            f" for {count} lists of rows"
        )
    if heads < 1 or groups < 1:
        _fail("heads and groups", "1 or more", f"{heads} and {groups}")
    if not eps >= 0:
        _fail("eps", "0 or more", eps)
    sizes = (heads + 2 * groups,) if len(qkv) == count else (heads, groups, groups)
    head_dim = _head_dim(qkv[0], sizes[0])
    for i, x in enumerate(qkv):
        shape = (len(rows[i // len(sizes)]), sizes[i % len(sizes)] * head_dim)
        _tensor(f"qkv[{i}]", x, shape, (qkv[0].dtype,), qkv[0])
    floats = (torch.float64,) if qkv[0].dtype == torch.float64 else FLOATS[:3]
    for name, weights in (("q_weight", q_weight), ("k_weight", k_weight)):
        if len(weights) not in (0, count) or len(weights) != len(q_weight):
            _fail(name, f"one per expert, {count}, or none, for q and k alike", len(weights))
        for i, one in enumerate(weights):
            _tensor(f"{name}[{i}]", one, (head_dim,), floats, qkv[0])
    wide = (torch.promote_types(qkv[0].dtype, torch.float32),)
    for name, one in (("cos", cos), ("sin", sin)):
        _tensor(name, one, (len(cos), head_dim // 2), wide, qkv[0])
    for i, one in enumerate(rows):
        _tensor(f"rows[{i}]", one, (len(one),), (torch.int32,), qkv[0])
    return head_dim


def check_outputs(call: Call, q_out: Tensor, k_out: Tensor, v_out: Tensor) -> None:
    """Raises InputError unless the given outputs of one expert fit it."""
    q, k = call.experts[0].q, call.experts[0].k
    dtypes = FLOATS[:3] if q.dtype != torch.float64 else (torch.float64,)
    _tensor("q_out", q_out, tuple(q.shape), dtypes, q)
    for name, one in (("k_out", k_out), ("v_out", v_out)):
        _tensor(name, one, (len(k_out), *k.shape[1:]), (q_out.dtype,), q)


def _head_dim(x: Tensor, heads: int) -> int:
    if x.ndim != 2 or x.shape[1] == 0 or x.shape[1] % (2 * heads):
        expected = f"[E, {heads}·D] with an even D"
        _fail("qkv[0]", expected, list(x.shape))
    if x.dtype not in FLOATS:
        _fail("qkv[0]", " or ".join(map(str, FLOATS)), x.dtype)
    return x.shape[1] // heads


def _tensor(
    name: str, x: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], like: Tensor
) -> None:
    if x.dtype not in dtypes:
        _fail(name, " or ".join(map(str, dtypes)), x.dtype)
    if tuple(x.shape) != shape:
        _fail(name, str(list(shape)), list(x.shape))
    if x.device != like.device:
        _fail(name, f"on qkv's device {like.device}", f"one on {x.device}")


def _fail(name: str, expected: str, found: object) -> None:
    raise InputError(f"qkv_prep: {name} must be {expected}, got {found}")
