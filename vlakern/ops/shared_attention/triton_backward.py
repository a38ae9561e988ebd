"""``shared_attention`` in Triton, backward: ``dq`` by tiles of queries, ``dk`` and ``dv`` of keys.

Nothing is added atomically: a program owns its rows of a gradient and visits what it sums in a
fixed order, so that the bits are the same every time. Strides as in ``triton_kernels``.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# Triton types compile-time arguments as constexpr; kernels pass each other literals.
import triton
import triton.language as tl

from vlakern.ops.shared_attention.triton_kernels import (
    dot,
    keys_at,
    load_tile,
    offsets,
    prefix_of,
    queries_of,
    rounded,
    store_tile,
    tiles_in,
)

__all__ = ["dkv_kernel", "dq_kernel"]

UNSEEN = tl.constexpr(1 << 30)  # a logical key beyond every kv_end
COUNT = tl.constexpr(512)


@triton.jit
def dq_kernel(
    q,  # [T, H, D]
    k,  # [S, G, D]
    v,  # [S, G, D]
    prefix_k,  # [P, G, D] if HAS_PREFIX
    prefix_v,  # [P, G, D] if HAS_PREFIX
    out,  # [T, H, D]
    lse,  # [T, H]
    grad_out,  # [T, H, D]
    grad_lse,  # [T, H] if HAS_GRAD_LSE
    grad_q,  # [T, H, D]
    delta,  # fp32 [T, H], dense; written for dkv_kernel
    cu_q,  # [R + 1]
    cu_k,  # [R + 1]
    kv_end,  # [T]
    cu_prefix,  # [N + 1] if HAS_PREFIX
    prefix_index,  # [R] if HAS_PREFIX
    rows,  # [T] if HAS_ROWS
    q_strides,
    k_strides,
    v_strides,
    prefix_k_strides,
    prefix_v_strides,
    out_strides,
    lse_strides,  # in elements
    grad_out_strides,
    grad_lse_strides,  # in elements
    grad_q_strides,
    delta_strides,  # in elements
    tiles,
    scale,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """delta = sum(dO o) - dlse, dS = P (dO vᵀ - delta), dq = scale dS k."""
    r = tl.program_id(0) // tiles
    g = tl.program_id(1)
    flat = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    inside, row, h, end = queries_of(r, flat, g, cu_q, kv_end, rows, GROUP, HAS_ROWS)
    if tl.max(inside.to(tl.int32), 0) == 0:
        return
    cached_begin, cached = prefix_of(r, cu_prefix, prefix_index, HAS_PREFIX)
    own_shift = tl.load(cu_k + r) - cached

    q_MD = load_tile(q + offsets(row, h, q_strides, ALIGN), inside, D, BLOCK_D, True)
    places = grad_out + offsets(row, h, grad_out_strides, ALIGN)
    grad_MD = load_tile(places, inside, D, BLOCK_D, True)
    out_MD = load_tile(out + offsets(row, h, out_strides, ALIGN), inside, D, BLOCK_D, True)
    delta_M = tl.sum(grad_MD.to(tl.float32) * out_MD.to(tl.float32), 1)
    if HAS_GRAD_LSE:
        places = grad_lse + offsets(row, h, grad_lse_strides, 1)
        delta_M -= tl.load(places, mask=inside & (end > 0), other=0.0)
    tl.store(delta + offsets(row, h, delta_strides, 1), delta_M, mask=inside)
    lse_M = tl.load(lse + offsets(row, h, lse_strides, 1), mask=inside, other=0.0)

    dq_MD = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    zero = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    last = tl.max(end, 0)
    cached_last = tl.minimum(cached, last)
    _, cached_tiles = tiles_in(0, cached_last, BLOCK_N)
    _, own_tiles = tiles_in(cached, last, BLOCK_N)
    for i in range(cached_tiles + own_tiles):
        in_prefix = i < cached_tiles
        begin = tl.where(in_prefix, i * BLOCK_N, cached + (i - cached_tiles) * BLOCK_N)
        stop = tl.where(in_prefix, cached_last, last)
        key = begin + tl.arange(0, BLOCK_N)
        tile = keys_at(
            key,
            in_prefix,
            g,
            k,
            k_strides,
            own_shift,
            prefix_k,
            prefix_k_strides,
            cached_begin,
            HAS_PREFIX,
            ALIGN,
        )
        k_ND = load_tile(tile, key < stop, D, BLOCK_D, True)
        tile = keys_at(
            key,
            in_prefix,
            g,
            v,
            v_strides,
            own_shift,
            prefix_v,
            prefix_v_strides,
            cached_begin,
            HAS_PREFIX,
            ALIGN,
        )
        v_ND = load_tile(tile, key < stop, D, BLOCK_D, True)
        score_MN = dot(q_MD, tl.trans(k_ND), zero, WIDEN) * scale
        weight_MN = tl.exp(score_MN - lse_M[:, None])
        weight_MN = tl.where(key[None, :] < tl.minimum(end, stop)[:, None], weight_MN, 0.0)
        dp_MN = dot(grad_MD, tl.trans(v_ND), zero, WIDEN)
        ds_MN = weight_MN * (dp_MN - delta_M[:, None])
        dq_MD = dot(rounded(ds_MN, k_ND.dtype, WIDEN), k_ND, dq_MD, WIDEN)
    places = grad_q + offsets(row, h, grad_q_strides, ALIGN)
    store_tile(places, dq_MD * scale, inside, D, BLOCK_D, WIDEN)


@triton.jit
def dkv_kernel(
    q,  # [T, H, D]
    k,  # [S, G, D], or the prefixes' [P, G, D] if OF_PREFIX
    v,  # as k
    lse,  # [T, H]
    grad_out,  # [T, H, D]
    delta,  # fp32 [T, H], dense
    grad_k,  # as k
    grad_v,  # as k
    cu_q,  # [R + 1]
    cu_k,  # [R + 1]
    kv_end,  # [T]
    cu_prefix,  # [N + 1] if HAS_PREFIX
    prefix_index,  # [R] if HAS_PREFIX
    rows,  # [T] if HAS_ROWS
    q_strides,
    k_strides,
    v_strides,
    lse_strides,  # in elements
    grad_out_strides,
    delta_strides,  # in elements
    grad_k_strides,
    grad_v_strides,
    tiles,
    documents,
    keys,  # rows of k
    scale,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OF_PREFIX: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """dv = Pᵀ dO and dk = scale dSᵀ q over the trailing queries that see these ``BLOCK_N`` keys.

    A tile of own keys lies in one document. A tile of prefix rows may touch several prefixes, and
    sums over every document that continues one of them, in the documents' order.
    """
    g = tl.program_id(1)
    if OF_PREFIX:
        begin = tl.program_id(0) * BLOCK_N
        stop = keys
        document = 0
        documents_end = documents
    else:
        document = tl.program_id(0) // tiles
        documents_end = document + 1
        begin = tl.load(cu_k + document) + tl.program_id(0) % tiles * BLOCK_N
        stop = tl.load(cu_k + document + 1)
    if begin >= stop:
        return
    key_row = begin + tl.arange(0, BLOCK_N)
    k_ND = load_tile(k + offsets(key_row, g, k_strides, ALIGN), key_row < stop, D, BLOCK_D, True)
    v_ND = load_tile(v + offsets(key_row, g, v_strides, ALIGN), key_row < stop, D, BLOCK_D, True)
    dk_ND = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv_ND = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    zero = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for r in range(document, documents_end):
        q_begin = tl.load(cu_q + r)
        queries = tl.load(cu_q + r + 1) - q_begin
        low, cached = prefix_of(r, cu_prefix, prefix_index, HAS_PREFIX)
        high = low + cached
        before = 0
        if not OF_PREFIX:
            low = tl.load(cu_k + r)
            high = stop
            before = cached
        nearest = tl.maximum(begin, low)
        queries = tl.where(nearest < tl.minimum(begin + BLOCK_N, high), queries, 0)
        key = tl.where((key_row >= low) & (key_row < high), key_row - low + before, UNSEEN)
        # kv_end does not decrease: counting those that end before the tile finds who sees it.
        blind = 0
        for at in range(0, queries, COUNT):
            i = at + tl.arange(0, COUNT)
            end = tl.load(kv_end + q_begin + i, mask=i < queries, other=UNSEEN)
            blind += tl.sum((end <= nearest - low + before).to(tl.int32), 0)
        for start in range(blind * GROUP, queries * GROUP, BLOCK_M):
            flat = start + tl.arange(0, BLOCK_M)
            inside, row, h, end = queries_of(r, flat, g, cu_q, kv_end, rows, GROUP, HAS_ROWS)
            q_MD = load_tile(q + offsets(row, h, q_strides, ALIGN), inside, D, BLOCK_D, True)
            places = grad_out + offsets(row, h, grad_out_strides, ALIGN)
            grad_MD = load_tile(places, inside, D, BLOCK_D, True)
            lse_M = tl.load(lse + offsets(row, h, lse_strides, 1), mask=inside, other=0.0)
            delta_M = tl.load(delta + offsets(row, h, delta_strides, 1), mask=inside, other=0.0)
            score_NM = dot(k_ND, tl.trans(q_MD), zero, WIDEN) * scale
            weight_NM = tl.exp(score_NM - lse_M[None, :])
            weight_NM = tl.where(key[:, None] < end[None, :], weight_NM, 0.0)
            dv_ND = dot(rounded(weight_NM, grad_MD.dtype, WIDEN), grad_MD, dv_ND, WIDEN)
            dp_NM = dot(v_ND, tl.trans(grad_MD), zero, WIDEN)
            ds_NM = weight_NM * (dp_NM - delta_M[None, :])
            dk_ND = dot(rounded(ds_NM, q_MD.dtype, WIDEN), q_MD, dk_ND, WIDEN)
    inside = key_row < stop
    places = grad_k + offsets(key_row, g, grad_k_strides, ALIGN)
    store_tile(places, dk_ND * scale, inside, D, BLOCK_D, WIDEN)
    places = grad_v + offsets(key_row, g, grad_v_strides, ALIGN)
    store_tile(places, dv_ND, inside, D, BLOCK_D, WIDEN)
