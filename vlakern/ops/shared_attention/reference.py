"""The definition of shared attention and its gradients, document by document.

Dimension letters: T rows of queries, S rows of own keys, P rows of cached keys, R documents,
H query heads, G key-value heads, D head dim, Q queries and K logical keys of one document, N query
heads that read one key-value head.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.ops.shared_attention.kv_end import KvEnd

__all__ = ["shared_attention_gradients", "shared_attention_reference"]


class Document(NamedTuple):
    """Where one document's tokens are."""

    queries: Tensor  # int64 [Q], rows of q, out and lse
    own: slice  # rows of k and v that somebody sees
    cached: slice  # rows of prefix_k and prefix_v that somebody sees
    visible_QK: Tensor  # bool


def documents(who: KvEnd, rows: Tensor | None) -> Iterator[Document]:
    """The documents in order; their keys are ``[cached, own]``."""
    if rows is not None and not torch.equal(
        rows.sort().values.cpu(), torch.arange(who.queries, dtype=rows.dtype)
    ):
        raise InputError("rows must hold every row of q once: a permutation of 0 to T - 1")
    cu_q, cu_k = who.cu_q.tolist(), who.cu_k.tolist()
    cu_p = [0, 0] if who.cu_prefix is None else who.cu_prefix.tolist()
    index = [0] * (len(cu_q) - 1) if who.prefix_index is None else who.prefix_index.tolist()
    joint_T = torch.arange(who.queries, device=who.cu_q.device) if rows is None else rows.long()
    for r, prefix in enumerate(index):
        end_Q = who.kv_end[cu_q[r] : cu_q[r + 1]]
        keys = int(end_Q.max()) if len(end_Q) else 0  # what nobody sees may hold NaN
        cached = slice(cu_p[prefix], min(cu_p[prefix + 1], cu_p[prefix] + keys))
        own = slice(cu_k[r], cu_k[r] + keys - (cached.stop - cached.start))
        visible_QK = torch.arange(keys, device=end_Q.device) < end_Q[:, None]
        yield Document(joint_T[cu_q[r] : cu_q[r + 1]], own, cached, visible_QK)


def keys_of(document: Document, own_SGD: Tensor, prefix_PGD: Tensor | None) -> Tensor:
    """``[K, G, D]``, the document's cached rows and then its own, in the precision of the op."""
    own_KGD = own_SGD[document.own]
    parts = [own_KGD] if prefix_PGD is None else [prefix_PGD[document.cached], own_KGD]
    return torch.cat(parts).to(wide(own_SGD))


def wide(x: Tensor) -> torch.dtype:
    """fp32, or fp64 for fp64."""
    return torch.promote_types(x.dtype, torch.float32)


def shared_attention_reference(
    q_THD: Tensor,
    k_SGD: Tensor,
    v_SGD: Tensor,
    who: KvEnd,
    prefix_k_PGD: Tensor | None = None,
    prefix_v_PGD: Tensor | None = None,
    *,
    rows: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(scale · q kᵀ) v over the visible keys, per document (arXiv 2602.09722, Eq. 1).

    Query head h reads key-value head ``h // (H // G)``. Row ``rows[i]`` of q, of the output and of
    the log-sum-exp is joint query i. Computed in fp32, or in fp64 for fp64.

    Returns:
        out ``[T, H, D]`` in q's dtype and lse ``[T, H]``, the natural logarithm of the sum of
        exp(scale · q·k). A query that sees nothing gives 0 and -inf.
    """
    factor = 1 / math.sqrt(q_THD.shape[2]) if scale is None else scale
    heads = (k_SGD.shape[1], q_THD.shape[1] // k_SGD.shape[1])
    out_THD = q_THD.new_zeros(q_THD.shape)
    lse_TH = q_THD.new_zeros(q_THD.shape[:2], dtype=wide(q_THD))
    for document in documents(who, rows):
        q_QGND = q_THD[document.queries].to(wide(q_THD)).unflatten(1, heads)
        k_KGD = keys_of(document, k_SGD, prefix_k_PGD)
        v_KGD = keys_of(document, v_SGD, prefix_v_PGD)
        weights_GNQK, lse_GNQ = softmax(q_QGND, k_KGD, document.visible_QK, factor)
        out_QGND = torch.einsum("gnqk,kgd->qgnd", weights_GNQK, v_KGD)
        out_QHD = out_QGND.flatten(1, 2).to(q_THD.dtype)
        out_THD = out_THD.index_copy(0, document.queries, out_QHD)
        lse_TH = lse_TH.index_copy(0, document.queries, lse_GNQ.flatten(0, 1).T)
    return out_THD, lse_TH


def softmax(
    q_QGND: Tensor, k_KGD: Tensor, visible_QK: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Weights ``[G, N, Q, K]`` and log-sum-exp ``[G, N, Q]`` of one document."""
    scores_GNQK = scale * torch.einsum("qgnd,kgd->gnqk", q_QGND, k_KGD)
    # Not -inf: a query that sees nothing must not make NaN gradients.
    lowest = torch.finfo(scores_GNQK.dtype).min
    if visible_QK.shape[1] == 0:
        return scores_GNQK, scores_GNQK.new_full(scores_GNQK.shape[:3], -torch.inf)
    scores_GNQK = scores_GNQK.masked_fill(~visible_QK, lowest)
    weights_GNQK = scores_GNQK.softmax(dim=-1).masked_fill(~visible_QK, 0.0)
    lse_GNQ = scores_GNQK.logsumexp(dim=-1).masked_fill(~visible_QK.any(dim=-1), -torch.inf)
    return weights_GNQK, lse_GNQ


def shared_attention_gradients(
    grad_out_THD: Tensor,
    grad_lse_TH: Tensor | None,
    q_THD: Tensor,
    k_SGD: Tensor,
    v_SGD: Tensor,
    who: KvEnd,
    prefix_k_PGD: Tensor | None = None,
    prefix_v_PGD: Tensor | None = None,
    *,
    rows: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of q, k, v, prefix_k and prefix_v, in the precision of the definition.

    With weights P and dP = dO vᵀ: dv = Pᵀ dO, dS = P ∘ (dP - rowsum(P ∘ dP) + dlse),
    dq = scale·dS k and dk = scale·dSᵀ q.
    Documents that share a prefix add to its gradient in their order.
    """
    factor = 1 / math.sqrt(q_THD.shape[2]) if scale is None else scale
    heads = (k_SGD.shape[1], q_THD.shape[1] // k_SGD.shape[1])
    dtype = wide(q_THD)
    grad_q, grad_k, grad_v = (torch.zeros_like(x, dtype=dtype) for x in (q_THD, k_SGD, v_SGD))
    grad_pk = None if prefix_k_PGD is None else torch.zeros_like(prefix_k_PGD, dtype=dtype)
    grad_pv = None if prefix_v_PGD is None else torch.zeros_like(prefix_v_PGD, dtype=dtype)
    for document in documents(who, rows):
        q_QGND = q_THD[document.queries].to(dtype).unflatten(1, heads)
        grad_QGND = grad_out_THD[document.queries].to(dtype).unflatten(1, heads)
        k_KGD = keys_of(document, k_SGD, prefix_k_PGD)
        v_KGD = keys_of(document, v_SGD, prefix_v_PGD)
        weights_GNQK, _ = softmax(q_QGND, k_KGD, document.visible_QK, factor)
        grad_P = torch.einsum("qgnd,kgd->gnqk", grad_QGND, v_KGD)
        delta_GNQ1 = (weights_GNQK * grad_P).sum(dim=-1, keepdim=True)
        if grad_lse_TH is not None:
            delta_GNQ1 = delta_GNQ1 - grad_lse_TH[document.queries].T.unflatten(0, heads)[..., None]
        grad_S = factor * weights_GNQK * (grad_P - delta_GNQ1)
        grad_QHD = torch.einsum("gnqk,kgd->qgnd", grad_S, k_KGD).flatten(1, 2)
        grad_q.index_copy_(0, document.queries, grad_QHD)
        _add(grad_k, grad_pk, document, torch.einsum("gnqk,qgnd->kgd", grad_S, q_QGND))
        _add(grad_v, grad_pv, document, torch.einsum("gnqk,qgnd->kgd", weights_GNQK, grad_QGND))
    return grad_q, grad_k, grad_v, grad_pk, grad_pv


def _add(own: Tensor, prefix: Tensor | None, document: Document, grad_KGD: Tensor) -> None:
    cached = document.cached.stop - document.cached.start
    if prefix is not None:
        prefix[document.cached] += grad_KGD[:cached]
    own[document.own] += grad_KGD[cached:]
