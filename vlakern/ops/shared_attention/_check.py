"""What a backend of ``shared_attention`` takes and must do, and the one check, at the border.

Dimension letters: T rows of queries, S rows of own keys, P rows of cached keys, R documents, N
cached prefixes, H query heads, G key-value heads, D head dim.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.ops.shared_attention.kv_end import KvEnd

__all__ = [
    "Forward",
    "Gradients",
    "Kernels",
    "check",
    "check_adjacent",
    "check_apart",
    "check_outputs",
]

STATES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Forward(NamedTuple):
    """One forward pass. Heads of D numbers are in one run; rows and heads may have any strides.

    A backend writes, for every joint query i of document r, with t = ``rows[i]`` (i if None):

    - ``out[t, h] = sum_j p_j v_j`` with ``p = softmax(scale · q[t, h] · k_j)`` over the first
      ``kv_end[i]`` logical keys of r, k and v of head ``h // (H // G)``. Logical key j is row
      ``cu_prefix[prefix_index[r]] + j`` of the prefix while that prefix lasts, then the rows from
      ``cu_k[r]`` on of k and v;
    - ``lse[t, h] = log(sum_j exp(scale · q·k_j))``, natural logarithm;
    - zeros and -inf where ``kv_end[i]`` is 0, or where the document has no keys at all.

    Every element of out and lse is written, so that neither needs to be cleared before. Rows of k,
    v and the prefixes that no document owns are not read, nor are keys at or beyond the largest
    ``kv_end`` of a document allowed to matter if they hold NaN in another document. ``who`` was
    checked when it was built: ranges are in bounds and kv_end does not decrease in a document. A
    backend on the CPU checks that ``rows`` is a permutation; one on a GPU trusts it.
    """

    q: Tensor  # [T, H, D]
    k: Tensor  # [S, G, D] q's dtype
    v: Tensor  # [S, G, D] q's dtype
    who: KvEnd
    prefix_k: Tensor | None  # [P, G, D] q's dtype
    prefix_v: Tensor | None  # [P, G, D] q's dtype
    rows: Tensor | None  # [T] int32
    scale: float
    deterministic: bool
    out: Tensor  # [T, H, D] q's dtype
    lse: Tensor  # [T, H] fp32 (fp64 for fp64)
    packed: Tensor | None = None  # uint8, the prefixes once more; for the native kernels
    workspace: Tensor | None = None  # uint8; for the Triton kernels, which make it if it is None


class Gradients(NamedTuple):
    """One backward pass: ``forward`` with the out and lse that it made, and where gradients go.

    With ``p_j = exp(scale · q·k_j - lse)``, ``delta = sum(grad_out · out) - grad_lse`` (0 if None)
    and ``ds_j = p_j · (grad_out · v_j - delta)``: ``grad_q = scale · sum_j ds_j k_j``, and over all
    queries and heads that see key j, ``grad_k_j = scale · sum ds_j q`` and ``grad_v_j = sum p_j
    grad_out``. A prefix that several documents continue gets the sum over all of them.

    Sums are accumulated in fp32 and rounded once; every element of every gradient is written (zeros
    where nobody looked: a query with kv_end 0, a key that nobody sees, a prefix that nobody
    continues). Rows and heads of grad_out may have any strides. ``deterministic`` asks for the same
    bits every time.
    """

    forward: Forward
    grad_out: Tensor  # [T, H, D] q's dtype, in the rows of q
    grad_lse: Tensor | None  # [T, H] fp32 (fp64 for fp64)
    grad_q: Tensor  # [T, H, D] q's dtype
    grad_k: Tensor  # [S, G, D] q's dtype
    grad_v: Tensor  # [S, G, D] q's dtype
    grad_prefix_k: Tensor | None  # [P, G, D] q's dtype
    grad_prefix_v: Tensor | None  # [P, G, D] q's dtype


Run = Callable[[], None]


class Kernels(NamedTuple):
    """What a backend's loader returns: each binds a pass to a call without arguments.

    A bound call may be made again and again on the same memory; it checks and allocates nothing
    that binding could have checked or allocated. ``who.max_q`` and ``who.max_keys`` size a grid.
    """

    forward: Callable[[Forward], Run]
    backward: Callable[[Gradients], Run]


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    who: KvEnd,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    rows: Tensor | None,
    scale: float | None,
) -> None:
    """Raises InputError for the first argument that does not fit; waits for no device."""
    heads_fit = q.ndim == k.ndim == 3 and k.shape[1] > 0 and q.shape[1] % k.shape[1] == 0
    if not heads_fit or k.shape[2] != q.shape[2] or v.shape != k.shape or q.dtype not in STATES:
        raise InputError(
            f"shared_attention: q {q.dtype} {list(q.shape)}, k {list(k.shape)} and v"
            f" {list(v.shape)} do not fit; expected floating [T, H, D] and twice [S, G, D] with H a"
            " multiple of G"
        )
    if q.shape[2] == 0:
        raise InputError("shared_attention: D, the width of a head, must be at least 1, got 0")
    given = [x is not None for x in (prefix_k, prefix_v, who.cu_prefix)]
    if any(given) and not all(given):
        raise InputError(
            "shared_attention: a cached prefix needs its keys, its values, and cu_prefix with"
            f" prefix_index in who; found {sum(given)} of the three"
        )
    _shape("q", q, (who.queries, *q.shape[1:]), "as cu_q counts")
    _shape("k", k, (who.keys, *k.shape[1:]), "as cu_k counts")
    prefix = (who.prefix_keys, *k.shape[1:])
    for name, cached in (("prefix_k", prefix_k), ("prefix_v", prefix_v)):
        if cached is not None:
            _shape(name, cached, prefix, "as cu_prefix counts")
            _like(name, cached, q)
    if rows is not None and rows.dtype != torch.int32:
        raise InputError(f"shared_attention: rows must be torch.int32, got {rows.dtype}")
    if rows is not None:
        _shape("rows", rows, (who.queries,), "one for each query")
        _device("rows", rows, q)
    if scale is not None and not 0 <= scale < math.inf:
        raise InputError(f"shared_attention: scale must be finite and not negative, got {scale}")
    _like("k", k, q)
    _like("v", v, q)
    _device("who", who.cu_q, q)


def check_outputs(q: Tensor, out: Tensor, lse: Tensor) -> None:
    """The same for given outputs."""
    _shape("out", out, tuple(q.shape), "as q")
    _shape("lse", lse, tuple(q.shape[:2]), "as q without its width")
    _like("out", out, q)
    _device("lse", lse, q)
    if lse.dtype != torch.promote_types(q.dtype, torch.float32):
        raise InputError(f"shared_attention: lse must be torch.float32, got {lse.dtype}")


def check_apart(out: Tensor, lse: Tensor, **inputs: Tensor | None) -> None:
    """Raises InputError for outputs in memory that is still read while they are written."""
    for name, tensor in inputs.items():
        for written, one in (("out", out), ("lse", lse)):
            if tensor is not None and _overlap(one, tensor):
                raise InputError(
                    f"shared_attention: {written} shares memory with {name}, which is read while it"
                    " is written; give it memory of its own"
                )
    if _overlap(out, lse):
        raise InputError("shared_attention: out and lse share memory; give each its own")


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the ranges of addresses of two tensors meet."""
    (a_first, a_end), (b_first, b_end) = _range(a), _range(b)
    return a_first < b_end and b_first < a_end


def _range(tensor: Tensor) -> tuple[int, int]:
    if tensor.numel() == 0:
        return 0, 0
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.data_ptr()
    return first, first + (last + 1) * tensor.element_size()


def check_adjacent(**tensors: Tensor | None) -> None:
    """Raises InputError for a tensor whose heads a kernel could not read in one run."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.stride(2) != 1 and tensor.shape[2] > 1:
            raise InputError(f"shared_attention: {name} must have stride 1 along D")


def _shape(name: str, tensor: Tensor, shape: tuple[int, ...], why: str) -> None:
    if tuple(tensor.shape) != shape:
        raise InputError(
            f"shared_attention: {name} must be {list(shape)}, {why}; got {list(tensor.shape)}"
        )


def _like(name: str, tensor: Tensor, q: Tensor) -> None:
    if tensor.dtype != q.dtype:
        raise InputError(f"shared_attention: {name} must be {q.dtype} as q, got {tensor.dtype}")
    _device(name, tensor, q)


def _device(name: str, tensor: Tensor, q: Tensor) -> None:
    if tensor.device != q.device:
        raise InputError(
            f"shared_attention: {name} must be on q's device {q.device}, got one on {tensor.device}"
        )
