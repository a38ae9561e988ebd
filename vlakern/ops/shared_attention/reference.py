"""Attention over packed documents in which every query sees a leading range of its own document.

Dimension letters: T packed rows of queries, S packed rows of keys, P packed rows of cached prefix
keys, R documents, H query heads, G key-value heads, D head dim, Q/K longest query/key range, N the
queries that read one key-value head.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from vlakern.errors import InputError

__all__ = ["KvEnd", "shared_attention"]


@dataclass(frozen=True)
class KvEnd:
    """Who sees what: query i sees the logical keys ``[0, kv_end[i])`` of its document.

    A document's logical keys are its cached prefix, if it has one, followed by its own keys.

    Attributes:
        cu_q: int64 ``[R + 1]``, rows ``[cu_q[r], cu_q[r + 1])`` are document r's queries.
        cu_k: int64 ``[R + 1]``, likewise for its own keys.
        kv_end: int64 ``[T]``, counted from the first logical key; 0 gives a zero output row.
        cu_prefix: int64 ``[N + 1]``, rows of each of the N cached prefixes.
        prefix_index: int64 ``[R]``, which prefix a document continues; several may share one.
    """

    cu_q: Tensor
    cu_k: Tensor
    kv_end: Tensor
    cu_prefix: Tensor | None = None
    prefix_index: Tensor | None = None

    @cached_property
    def padded(self) -> "Padded":
        """The same ranges as rectangles, built once per batch.

        Raises:
            InputError: a query sees more keys than its document has, or fewer than none.
        """
        q_begin, q_count = self.cu_q[:-1], self.cu_q.diff()
        k_begin, k_count = self.cu_k[:-1], self.cu_k.diff()
        prefix_count = torch.zeros_like(k_count)
        prefix_begin = torch.zeros_like(k_count)
        prefix_rows = 0
        if self.cu_prefix is not None and self.prefix_index is not None:
            prefix_count = self.cu_prefix.diff()[self.prefix_index]
            prefix_begin = self.cu_prefix[self.prefix_index]
            prefix_rows = int(self.cu_prefix[-1])
        device = self.cu_q.device
        key_count = prefix_count + k_count
        query = torch.arange(_largest(q_count), device=device)
        key = torch.arange(_largest(key_count), device=device)
        query_inside_RQ = query < q_count[:, None]
        key_inside_RK = key < key_count[:, None]
        zeros_row = prefix_rows + int(self.cu_k[-1])
        # Rows of the concatenation [prefixes | own keys | zeros]; what lies outside points at the
        # zeros, because 0 · NaN would carry a stranger's NaN into every shorter document.
        own_RK = prefix_rows + k_begin[:, None] + key - prefix_count[:, None]
        key_rows_RK = torch.where(key < prefix_count[:, None], prefix_begin[:, None] + key, own_RK)
        key_rows_RK = torch.where(key_inside_RK, key_rows_RK, zeros_row)
        query_rows_RQ = torch.where(query_inside_RQ, q_begin[:, None] + query, 0)
        end_RQ = torch.where(query_inside_RQ, self.kv_end[query_rows_RQ], 0)
        if bool(((end_RQ < 0) | (end_RQ > key_count[:, None])).any()):
            raise InputError(
                "kv_end leaves the keys of its document; expected 0 to the number of cached and own"
                " keys"
            )
        return Padded(
            query_rows_RQ=query_rows_RQ,
            key_rows_RK=key_rows_RK,
            zeros_row=zeros_row,
            visible_RQK=key < end_RQ[:, :, None],
            packed_T=query_inside_RQ.flatten().nonzero().squeeze(1),
        )


@dataclass(frozen=True)
class Padded:
    """Index rectangles: rows to gather, which pairs are visible, and where the real queries lie.

    ``zeros_row`` is the key row that stands for "none", after all others.
    """

    query_rows_RQ: Tensor
    key_rows_RK: Tensor
    zeros_row: int
    visible_RQK: Tensor
    packed_T: Tensor


def shared_attention(
    q_THD: Tensor,
    k_SGD: Tensor,
    v_SGD: Tensor,
    who: KvEnd,
    prefix_k_PGD: Tensor | None = None,
    prefix_v_PGD: Tensor | None = None,
) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v over the visible keys, per document (arXiv 2602.09722, Eq. 1).

    Args:
        q_THD, k_SGD, v_SGD: packed rows; H is a multiple of G and query head h reads key-value
            head ``h // (H // G)``.
        who: the visible ranges.
        prefix_k_PGD, prefix_v_PGD: cached keys and values, with ``who.cu_prefix``.

    Returns:
        ``[T, H, D]`` in q's dtype, computed in fp32, or in fp64 for fp64 queries. A query that sees
        nothing gives zeros.

    Raises:
        InputError: shapes that do not fit each other or ``who``.
    """
    _check(q_THD, k_SGD, v_SGD, who, prefix_k_PGD, prefix_v_PGD)
    rows = who.padded
    k_SGD, v_SGD = _with_zeros(prefix_k_PGD, k_SGD), _with_zeros(prefix_v_PGD, v_SGD)
    if len(k_SGD) != rows.zeros_row + 1:
        raise InputError(
            f"shared_attention: found {len(k_SGD) - 1} cached and own keys, but cu_prefix and cu_k"
            f" count {rows.zeros_row}"
        )
    groups = (k_SGD.shape[1], q_THD.shape[1] // k_SGD.shape[1])
    wide = torch.promote_types(q_THD.dtype, torch.float32)
    # The N = H / G · Q queries that read one key-value head, head by head.
    q_RQHD = _rows(q_THD, rows.query_rows_RQ).to(wide)
    q_RGND = q_RQHD.unflatten(2, groups).permute(0, 2, 3, 1, 4).flatten(2, 3)
    k_RGKD = _rows(k_SGD, rows.key_rows_RK).to(wide).transpose(1, 2)
    v_RGKD = _rows(v_SGD, rows.key_rows_RK).to(wide).transpose(1, 2)
    visible_R1NK = rows.visible_RQK[:, None].repeat(1, 1, groups[1], 1)
    scores_RGNK = q_RGND @ k_RGKD.mT / math.sqrt(q_THD.shape[2])
    # Not -inf: a query that sees nothing must not make NaN gradients. Autocast may lower the dtype.
    lowest = torch.finfo(scores_RGNK.dtype).min
    weights_RGNK = scores_RGNK.masked_fill(~visible_R1NK, lowest).softmax(dim=-1)
    out_RGND = weights_RGNK.masked_fill(~visible_R1NK, 0.0) @ v_RGKD
    by_query = out_RGND.unflatten(2, (groups[1], -1)).permute(0, 3, 1, 2, 4)
    out_RQHD = by_query.flatten(2, 3)
    return out_RQHD.flatten(0, 1).index_select(0, rows.packed_T).to(q_THD.dtype)


def _check(
    q_THD: Tensor,
    k_SGD: Tensor,
    v_SGD: Tensor,
    who: KvEnd,
    prefix_k_PGD: Tensor | None,
    prefix_v_PGD: Tensor | None,
) -> None:
    """Host-side facts only: nothing here waits for a device."""
    heads, groups = q_THD.shape[1], k_SGD.shape[1]
    if heads % groups or q_THD.shape[2] != k_SGD.shape[2] or k_SGD.shape != v_SGD.shape:
        raise InputError(
            f"shared_attention: q {list(q_THD.shape)}, k {list(k_SGD.shape)} and v"
            f" {list(v_SGD.shape)} do not fit; expected [T, H, D] and twice [S, G, D] with H a"
            " multiple of G"
        )
    if who.kv_end.shape != q_THD.shape[:1]:
        raise InputError(
            f"shared_attention: {len(who.kv_end)} entries of kv_end for {q_THD.shape[0]} queries;"
            " expected one each"
        )
    given = [x is not None for x in (prefix_k_PGD, prefix_v_PGD, who.cu_prefix, who.prefix_index)]
    if any(given) and not all(given):
        raise InputError(
            "shared_attention: a cached prefix needs its keys, its values, cu_prefix and"
            f" prefix_index; found {sum(given)} of the four"
        )


def _with_zeros(prefix_PGD: Tensor | None, own_SGD: Tensor) -> Tensor:
    """[prefix | own | one row of zeros]."""
    parts = [own_SGD, own_SGD.new_zeros(1, *own_SGD.shape[1:])]
    return torch.cat(parts if prefix_PGD is None else [prefix_PGD, *parts])


def _largest(counts_R: Tensor) -> int:
    return int(counts_R.max()) if len(counts_R) else 0


def _rows(x_TGD: Tensor, index: Tensor) -> Tensor:
    """``x_TGD[index]``, by the one gather whose backward is fast on CPUs: the embedding's."""
    return F.embedding(index, x_TGD.flatten(1)).unflatten(-1, x_TGD.shape[1:])
