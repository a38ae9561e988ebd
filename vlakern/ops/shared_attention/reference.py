"""Attention over packed documents in which every query sees a leading range of its own document.

Dimension letters: T packed rows of queries, S packed rows of keys, P packed rows of cached prefix
keys, R documents, H query heads, G key-value heads, D head dim, Q/K longest query/key range.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

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
        """The same ranges as rectangles, built once per batch."""
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
        query = torch.arange(int(q_count.max()), device=device)
        key = torch.arange(int((prefix_count + k_count).max()), device=device)
        query_inside_RQ = query < q_count[:, None]
        key_inside_RK = key < (prefix_count + k_count)[:, None]
        # Rows of the concatenation [prefixes | own keys]; what lies outside points at row 0.
        own_RK = prefix_rows + k_begin[:, None] + key - prefix_count[:, None]
        key_rows_RK = torch.where(key < prefix_count[:, None], prefix_begin[:, None] + key, own_RK)
        key_rows_RK = torch.where(key_inside_RK, key_rows_RK, 0)
        query_rows_RQ = torch.where(query_inside_RQ, q_begin[:, None] + query, 0)
        end_RQ = torch.where(query_inside_RQ, self.kv_end[query_rows_RQ], 0)
        return Padded(
            query_rows_RQ=query_rows_RQ,
            key_rows_RK=key_rows_RK,
            visible_RQK=key < end_RQ[:, :, None],
            packed_T=query_inside_RQ.flatten().nonzero().squeeze(1),
        )


@dataclass(frozen=True)
class Padded:
    """Index rectangles: rows to gather, which pairs are visible, and where the real queries lie."""

    query_rows_RQ: Tensor
    key_rows_RK: Tensor
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
        ``[T, H, D]`` in q's dtype. A query that sees nothing gives zeros.
    """
    rows = who.padded
    if prefix_k_PGD is not None and prefix_v_PGD is not None:
        k_SGD = torch.cat([prefix_k_PGD, k_SGD])
        v_SGD = torch.cat([prefix_v_PGD, v_SGD])
    groups = q_THD.shape[1] // k_SGD.shape[1]
    q_RQHD = _rows(q_THD, rows.query_rows_RQ).float()
    k_RKHD = _rows(k_SGD, rows.key_rows_RK).float().repeat_interleave(groups, dim=2)
    v_RKHD = _rows(v_SGD, rows.key_rows_RK).float().repeat_interleave(groups, dim=2)
    scores_RHQK = torch.einsum("rqhd,rkhd->rhqk", q_RQHD, k_RKHD) / math.sqrt(q_THD.shape[2])
    visible_R1QK = rows.visible_RQK[:, None]
    # Not -inf: a query that sees nothing must not make NaN gradients. Autocast may lower the dtype.
    lowest = torch.finfo(scores_RHQK.dtype).min
    scores_RHQK = scores_RHQK.masked_fill(~visible_R1QK, lowest)
    weights_RHQK = scores_RHQK.softmax(dim=-1).masked_fill(~visible_R1QK, 0.0)
    out_RQHD = torch.einsum("rhqk,rkhd->rqhd", weights_RHQK, v_RKHD)
    return out_RQHD.flatten(0, 1).index_select(0, rows.packed_T).to(q_THD.dtype)


def _rows(x_TGD: Tensor, index: Tensor) -> Tensor:
    """``x_TGD[index]``; the embedding's backward is the one gather backward that is fast on CPUs."""
    return F.embedding(index, x_TGD.flatten(1)).unflatten(-1, x_TGD.shape[1:])
