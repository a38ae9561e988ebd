"""``shared_attention`` in Triton, forward: online softmax, split over keys when programs are few.

A program owns one document, one key-value head and ``BLOCK_M`` rows; a row is one query of one of
the ``GROUP`` heads that read this key-value head, so that keys and values are read once for all of
them. Strides are ``(row, head)`` in units of ``ALIGN`` elements; the last dimension is contiguous.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# Triton types compile-time arguments as constexpr; kernels pass each other literals.
import triton
import triton.language as tl

from vlakern.ops._triton import dot, rounded

__all__ = ["attend_kernel", "combine_kernel"]


@triton.jit
def offsets(row, head, strides, ALIGN: tl.constexpr):
    """Elements from the start; the factor tells the compiler how wide a load may be."""
    return (row.to(tl.int64) * strides[0] + head * strides[1]) * ALIGN


@triton.jit
def load_tile(at, inside, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """``[BLOCK, BLOCK_D]`` from the first elements of its rows, 0 where there is nothing."""
    d = tl.arange(0, BLOCK_D)
    pointers = at[:, None] + d[None, :]
    if MASKED:
        return tl.load(pointers, mask=inside[:, None] & (d < D)[None, :], other=0.0)
    elif D < BLOCK_D:
        return tl.load(pointers, mask=(d < D)[None, :], other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def store_tile(at, value, inside, D: tl.constexpr, BLOCK_D: tl.constexpr, WIDEN: tl.constexpr):
    """Rounds and writes what is inside."""
    d = tl.arange(0, BLOCK_D)
    value = rounded(value, at.dtype.element_ty, WIDEN)
    tl.store(at[:, None] + d[None, :], value, mask=inside[:, None] & (d < D)[None, :])


@triton.jit
def queries_of(r, flat, g, cu_q, kv_end, rows, GROUP: tl.constexpr, HAS_ROWS: tl.constexpr):
    """Of rows ``flat`` of a document: is there one, its row of q, its head, and what it sees."""
    begin = tl.load(cu_q + r)
    joint = begin + flat // GROUP
    inside = joint < tl.load(cu_q + r + 1)
    end = tl.load(kv_end + joint, mask=inside, other=0)
    row = joint
    if HAS_ROWS:
        row = tl.load(rows + joint, mask=inside, other=0)
    return inside, row, g * GROUP + flat % GROUP, end


@triton.jit
def prefix_of(r, cu_prefix, prefix_index, HAS_PREFIX: tl.constexpr):
    """First row and length of the prefix that a document continues."""
    begin = 0
    length = 0
    if HAS_PREFIX:
        n = tl.load(prefix_index + r)
        begin = tl.load(cu_prefix + n)
        length = tl.load(cu_prefix + n + 1) - begin
    return begin, length


@triton.jit
def keys_at(
    key,  # [BLOCK_N] logical, all of the prefix or all of the document's own
    in_prefix,
    g,
    own,
    own_strides,
    own_shift,  # from a logical key to its row
    cached,
    cached_strides,
    cached_shift,
    HAS_PREFIX: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """First elements of keys of one tile: everything that is chosen here is a scalar."""
    if HAS_PREFIX:
        start = tl.where(in_prefix, cached, own)
        row = key + tl.where(in_prefix, cached_shift, own_shift)
        row_stride = tl.where(in_prefix, cached_strides[0], own_strides[0])
        head_stride = tl.where(in_prefix, cached_strides[1], own_strides[1])
        return start + (row.to(tl.int64) * row_stride + g * head_stride) * ALIGN
    else:
        return own + offsets(key + own_shift, g, own_strides, ALIGN)


@triton.jit
def tiles_in(begin, end, BLOCK: tl.constexpr):
    """Whole tiles of a range and tiles that cover it, none if it is empty."""
    length = tl.maximum(end - begin, 0)
    return length // BLOCK, (length + BLOCK - 1) // BLOCK


@triton.jit
def attend_kernel(
    q,  # [T, H, D]
    k,  # [S, G, D]
    v,  # [S, G, D]
    prefix_k,  # [P, G, D] if HAS_PREFIX
    prefix_v,  # [P, G, D] if HAS_PREFIX
    out,  # [T, H, D], or fp32 [splits, T, H, D]
    lse,  # [T, H], or [splits, T, H]
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
    out_split,  # from one split to the next
    lse_split,  # in elements
    tiles,
    chunk,
    scale,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDEN: tl.constexpr,
):
    r = tl.program_id(0) // tiles
    g = tl.program_id(1)
    split = tl.program_id(2)
    flat = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    inside, row, h, end = queries_of(r, flat, g, cu_q, kv_end, rows, GROUP, HAS_ROWS)
    if tl.max(inside.to(tl.int32), 0) == 0:
        return
    cached_begin, cached = prefix_of(r, cu_prefix, prefix_index, HAS_PREFIX)
    own_shift = tl.load(cu_k + r) - cached

    first = split * chunk
    last = tl.minimum(tl.max(end, 0), first + chunk)
    # Below this every query of the tile sees every key, so that nothing has to be masked.
    every = tl.minimum(tl.min(tl.where(inside, end, last), 0), last)
    cached_last = tl.minimum(cached, last)
    own_first = tl.maximum(cached, first)
    cached_whole, _ = tiles_in(first, tl.minimum(every, cached), BLOCK_N)
    own_whole, _ = tiles_in(own_first, every, BLOCK_N)
    _, cached_rest = tiles_in(first + cached_whole * BLOCK_N, cached_last, BLOCK_N)
    _, own_rest = tiles_in(own_first + own_whole * BLOCK_N, last, BLOCK_N)

    q_MD = load_tile(q + offsets(row, h, q_strides, ALIGN), inside, D, BLOCK_D, True)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc_MD = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for BOUNDARY in tl.static_range(2):
        # Whole tiles first: the prefix's, then the document's own; then what is left of each.
        cached_start = first
        own_start = own_first
        cached_tiles = cached_whole
        own_tiles = own_whole
        if BOUNDARY:
            cached_start += cached_whole * BLOCK_N
            own_start += own_whole * BLOCK_N
            cached_tiles = cached_rest
            own_tiles = own_rest
        for i in range(cached_tiles + own_tiles):
            in_prefix = i < cached_tiles
            begin = tl.where(
                in_prefix, cached_start + i * BLOCK_N, own_start + (i - cached_tiles) * BLOCK_N
            )
            stop = tl.where(in_prefix, cached_last, last)
            key = begin + tl.arange(0, BLOCK_N)
            places = keys_at(
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
            k_ND = load_tile(places, key < stop, D, BLOCK_D, BOUNDARY)
            zero = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            score_MN = dot(q_MD, tl.trans(k_ND), zero, WIDEN) * scale
            if BOUNDARY:
                seen = key[None, :] < tl.minimum(end, stop)[:, None]
                score_MN = tl.where(seen, score_MN, float("-inf"))
            new = tl.maximum(top, tl.max(score_MN, 1))
            shift = new
            if BOUNDARY:  # a query that has seen nothing yet must not make NaN
                shift = tl.where(new == float("-inf"), 0.0, new)
            weight_MN = tl.exp(score_MN - shift[:, None])
            fade = tl.exp(top - shift)
            total = total * fade + tl.sum(weight_MN, 1)
            places = keys_at(
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
            v_ND = load_tile(places, key < stop, D, BLOCK_D, BOUNDARY)
            acc_MD = dot(rounded(weight_MN, v_ND.dtype, WIDEN), v_ND, acc_MD * fade[:, None], WIDEN)
            top = new

    seen = total > 0
    some = tl.where(seen, total, 1.0)
    places = out + split.to(tl.int64) * out_split * ALIGN + offsets(row, h, out_strides, ALIGN)
    store_tile(places, acc_MD / some[:, None], inside, D, BLOCK_D, WIDEN)
    places = lse + split.to(tl.int64) * lse_split + offsets(row, h, lse_strides, 1)
    tl.store(places, tl.where(seen, top + tl.log(some), float("-inf")), mask=inside)


@triton.jit
def combine_kernel(
    part,  # fp32 [splits, T, H, D], dense
    part_lse,  # [splits, T, H], dense
    out,  # [T, H, D]
    lse,  # [T, H]
    out_strides,
    lse_strides,  # in elements
    part_split,  # T * H * D
    lse_split,  # T * H
    splits,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One row of q and one head: the parts weighted by their share of the sum."""
    t = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    element = t * tl.num_programs(1) + h
    s = tl.arange(0, BLOCK_S)
    d = tl.arange(0, BLOCK_D)
    there = s < splits
    lse_S = tl.load(
        part_lse + s.to(tl.int64) * lse_split + element, mask=there, other=float("-inf")
    )
    top = tl.max(lse_S, 0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    weight_S = tl.exp(lse_S - shift)
    total = tl.sum(weight_S, 0)
    some = tl.where(total > 0, total, 1.0)
    at = part + s.to(tl.int64)[:, None] * part_split + element * D + d[None, :]
    part_SD = tl.load(at, mask=there[:, None] & (d < D)[None, :], other=0.0)
    out_D = tl.sum(weight_S[:, None] * part_SD, 0) / some
    out_D = rounded(out_D, out.dtype.element_ty, WIDEN)
    tl.store(out + offsets(t, h, out_strides, ALIGN) + d, out_D, mask=d < D)
    found = tl.where(total > 0, shift + tl.log(some), float("-inf"))
    tl.store(lse + offsets(t, h, lse_strides, 1), found)
