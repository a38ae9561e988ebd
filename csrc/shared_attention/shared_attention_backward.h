// One chain of shared_attention backward; included by one translation unit per ISA.
//
// Scores and weights are made again from the log-sum-exp, transposed as in the forward pass. A
// prefix's gradients are summed in fp32 over all documents that continue it, in their order, so
// that the result does not depend on the number of threads.
#pragma once

#include "shared_attention/shared_attention_kernel.h"

namespace vlakern {
namespace {

// 2^(slope * score + shift).
template <class Dot>
inline typename Dot::Vec::Float probability(typename Dot::Vec::Float score, const Slope& slope,
                                            typename Dot::Vec::Float shift) {
  using Vec = typename Dot::Vec;
  auto x = Vec::fma(score, Vec::splat(slope.high), shift);
  if (Dot::kPair == 1) x = Vec::fma(score, Vec::splat(slope.low), x);
  return vec_exp2<Vec>(x);
}

// The queries of one tile in every form that the products need, and what their rows share.
template <class Dot>
struct TileRows {
  using Word = typename Dot::Word;
  Word* q_lanes;     // [width / kPair][stride]
  Word* grad_lanes;  // [width / kPair][stride]
  Word* q_rows;      // [padded / kPair][wide + kAttentionGap]
  Word* grad_rows;   // [padded / kPair][wide + kAttentionGap]
  float* shift;      // -lse in powers of two; -inf where nothing is seen
  float* norm;       // sum of the weights, then what makes it 1
  float* delta;      // sum of weight * grad_p, then its mean less grad_lse
  float* grad_q;     // [padded][wide]
};

// One block of keys, and what a tile makes of it.
template <class Dot>
struct KeyBlock {
  using Word = typename Dot::Word;
  std::int64_t begin, count;
  float* weights;  // [block][stride] scores, then weights
  float* grad_p;   // [block][stride] grad_out · v
};

// Memory for one block, used again by the next.
template <class Dot>
struct BlockWords {
  using Word = typename Dot::Word;
  Word* k_rows;    // [block][width / kPair]
  Word* v_rows;    // [block][width / kPair]
  Word* k_pairs;   // [block / kPair][wide + kAttentionGap]
  Word* p_rows;    // [block][stride / kPair] weights
  Word* ds_rows;   // [block][stride / kPair] gradients of the scores
  Word* ds_pairs;  // [block / kPair][stride] the same
};

template <class Dot, class T>
void pack_query_pairs(const Lanes& lanes, const HeadRows& from, typename Dot::Word* out) {
  const std::int64_t width = lanes.p->width, wide = round_up(width, 16);
  for (std::int64_t n = 0; n < lanes.padded; n += Dot::kPair, out += wide + kAttentionGap) {
    std::fill_n(out, wide, typename Dot::Word{});
    if (n >= lanes.count) continue;
    const T* second = nullptr;
    if (Dot::kPair == 2 && n + 1 < lanes.count) {
      second = row_of<T>(from, lanes.row(n + 1), lanes.head(n + 1));
    }
    pack_rows_together<Dot>(row_of<T>(from, lanes.row(n), lanes.head(n)), second, width, out);
  }
}

template <class Dot, class T>
void pack_tile(const Lanes& lanes, const TileRows<Dot>& rows) {
  const SharedAttentionParams& p = *lanes.p;
  pack_queries<Dot, T>(lanes, p.q, rows.q_lanes);
  pack_queries<Dot, T>(lanes, p.grad_out, rows.grad_lanes);
  pack_query_pairs<Dot, T>(lanes, p.q, rows.q_rows);
  pack_query_pairs<Dot, T>(lanes, p.grad_out, rows.grad_rows);
  std::fill_n(rows.grad_q, lanes.padded * round_up(p.width, 16), 0.0f);
  std::fill_n(rows.shift, lanes.padded, -kInfinity);
  std::fill_n(rows.norm, lanes.padded, 0.0f);
  std::fill_n(rows.delta, lanes.padded, 0.0f);
  for (std::int64_t n = 0; n < lanes.count; ++n) {
    if (lanes.end[n] == 0.0f) continue;
    rows.shift[n] = -*row_of<float>(p.lse, lanes.row(n), lanes.head(n)) * kLog2E;
  }
}

// Weights of one block for the vector of lanes at `lane`, and what they add to the sums.
template <class Dot, bool kMasked>
inline void weigh(const KeyBlock<Dot>& block, const TileRows<Dot>& rows, const Lanes& lanes,
                  const Slope& slope, std::int64_t lane) {
  using Vec = typename Dot::Vec;
  constexpr int kLanes = Vec::kLanes;
  const auto zero = Vec::splat(0.0f);
  const auto seen = Vec::load(lanes.end + lane, kLanes);
  const auto shift = Vec::load(rows.shift + lane, kLanes);
  auto sum = zero, mean = zero;
  for (std::int64_t j = 0; j < block.count; ++j) {
    float* at = block.weights + j * lanes.stride + lane;
    auto value = probability<Dot>(Vec::load(at, kLanes), slope, shift);
    if (kMasked) {
      const auto key = Vec::splat(static_cast<float>(block.begin + j));
      value = Vec::select(Vec::less(key, seen), value, zero);
    }
    Vec::store(at, value, kLanes);
    sum = Vec::add(sum, value);
    mean = Vec::fma(value, Vec::load(block.grad_p + j * lanes.stride + lane, kLanes), mean);
  }
  Vec::store(rows.norm + lane, Vec::add(Vec::load(rows.norm + lane, kLanes), sum), kLanes);
  Vec::store(rows.delta + lane, Vec::add(Vec::load(rows.delta + lane, kLanes), mean), kLanes);
}

template <class Dot, class T>
void weigh_block(const KeyBlock<Dot>& block, const BlockWords<Dot>& words,
                 const TileRows<Dot>& rows, const Lanes& lanes, const Keys& keys) {
  const SharedAttentionParams& p = *lanes.p;
  const std::int64_t padded = lanes.padded, width = p.width / Dot::kPair;
  const std::int64_t stride = lanes.stride;
  const std::int64_t end = block.begin + block.count;
  const std::int64_t key_rows = round_up(block.count, kProductRows);
  pack_keys<Dot, T>(keys, p.prefix_k, p.k, block.begin, end, lanes.group, p.width, words.k_rows);
  pack_keys<Dot, T>(keys, p.prefix_v, p.v, block.begin, end, lanes.group, p.width, words.v_rows);
  products<Dot, Put::kSet>(words.k_rows, width, 1, rows.q_lanes, stride, block.weights, stride,
                           key_rows, padded, width);
  products<Dot, Put::kSet>(words.v_rows, width, 1, rows.grad_lanes, stride, block.grad_p, stride,
                           key_rows, padded, width);
  for (std::int64_t lane = 0; lane < padded; lane += Dot::Vec::kLanes) {
    const auto step = end > lanes.least ? weigh<Dot, true> : weigh<Dot, false>;
    step(block, rows, lanes, Slope(p.scale), lane);
  }
}

// The lse was rounded and so was out: the sums of the weights as they are make errors cancel.
inline void finish_sums(const Lanes& lanes, const HeadRows& grad_lse, float* norm, float* delta) {
  for (std::int64_t n = 0; n < lanes.count; ++n) {
    norm[n] = norm[n] > 0 ? 1.0f / norm[n] : 0.0f;
    delta[n] *= norm[n];
    if (grad_lse.data != nullptr && lanes.end[n] > 0) {
      delta[n] -= *row_of<float>(grad_lse, lanes.row(n), lanes.head(n));
    }
  }
}

// Weights and gradients of the scores as words, for the vector of lanes at `lane`.
template <class Dot>
inline void differentiate(const KeyBlock<Dot>& block, const BlockWords<Dot>& words,
                          const TileRows<Dot>& rows, std::int64_t stride, std::int64_t lane) {
  using Vec = typename Dot::Vec;
  constexpr int kLanes = Vec::kLanes;
  const auto norm = Vec::load(rows.norm + lane, kLanes);
  const auto delta = Vec::load(rows.delta + lane, kLanes);
  const auto one = [&](std::int64_t j) {
    auto p = Vec::splat(0.0f), ds = p;
    if (j < block.count) {
      p = Vec::mul(Vec::load(block.weights + j * stride + lane, kLanes), norm);
      ds = Vec::mul(p, Vec::sub(Vec::load(block.grad_p + j * stride + lane, kLanes), delta));
    }
    const std::int64_t at = (j * stride + lane) / Dot::kPair;
    Dot::store_queries(words.p_rows + at, p);
    Dot::store_queries(words.ds_rows + at, ds);
    return ds;
  };
  for (std::int64_t j = 0; j < round_up(block.count, kProductRows); j += 2) {
    const auto even = one(j);
    const auto odd = one(j + 1);
    auto* to = words.ds_pairs + j / Dot::kPair * stride + lane;
    Dot::store_keys(to, to + stride, even, odd);
  }
}

// Where the gradients of a tile's keys are summed: row j is logical key j.
struct KeySums {
  float *prefix_k, *prefix_v;  // of keys before `cached`
  float *own_k, *own_v;        // of those from there on
  std::int64_t cached;

  float* k(std::int64_t key, std::int64_t wide) const {
    return key < cached ? prefix_k + key * wide : own_k + (key - cached) * wide;
  }
  float* v(std::int64_t key, std::int64_t wide) const {
    return key < cached ? prefix_v + key * wide : own_v + (key - cached) * wide;
  }
};

// Adds one tile's share of one block of keys to the gradients. To rows of padding behind a block,
// which may be the next one's, zeros are added.
template <class Dot, class T>
void add_block(const KeyBlock<Dot>& block, const BlockWords<Dot>& words, const TileRows<Dot>& rows,
               const Lanes& lanes, const Keys& keys, const KeySums& sums) {
  const SharedAttentionParams& p = *lanes.p;
  const std::int64_t padded = lanes.padded, wide = round_up(p.width, 16);
  const std::int64_t lane_words = padded / Dot::kPair, row_words = lanes.stride / Dot::kPair;
  const std::int64_t pairs_row = wide + kAttentionGap;
  const std::int64_t key_rows = round_up(block.count, kProductRows);
  pack_key_pairs<Dot, T>(keys, p.prefix_k, p.k, block.begin, block.begin + block.count, lanes.group,
                         p.width, words.k_pairs);
  for (std::int64_t lane = 0; lane < padded; lane += Dot::Vec::kLanes) {
    differentiate<Dot>(block, words, rows, lanes.stride, lane);
  }
  products<Dot, Put::kAdd>(words.p_rows, row_words, 1, rows.grad_rows, pairs_row,
                           sums.v(block.begin, wide), wide, key_rows, wide, lane_words);
  products<Dot, Put::kAdd>(words.ds_rows, row_words, 1, rows.q_rows, pairs_row,
                           sums.k(block.begin, wide), wide, key_rows, wide, lane_words);
  products<Dot, Put::kAdd>(words.ds_pairs, 1, lanes.stride, words.k_pairs, pairs_row, rows.grad_q,
                           wide, padded, wide, (block.count + Dot::kPair - 1) / Dot::kPair);
}

template <class Dot>
TileRows<Dot> take_rows(Arena& arena, std::int64_t width) {
  using Word = typename Dot::Word;
  const std::int64_t wide = round_up(width, 16), tile = kAttentionTile;
  const std::int64_t lanes = tile + kAttentionGap, row = wide + kAttentionGap;
  TileRows<Dot> rows{};
  rows.q_lanes = arena.take<Word>(lanes * width / Dot::kPair);
  rows.grad_lanes = arena.take<Word>(lanes * width / Dot::kPair);
  rows.q_rows = arena.take<Word>(tile * row / Dot::kPair);
  rows.grad_rows = arena.take<Word>(tile * row / Dot::kPair);
  rows.shift = arena.take(tile);
  rows.norm = arena.take(tile);
  rows.delta = arena.take(tile);
  rows.grad_q = arena.take(tile * wide);
  return rows;
}

template <class Dot>
BlockWords<Dot> take_block(Arena& arena, std::int64_t width) {
  using Word = typename Dot::Word;
  const std::int64_t wide = round_up(width, 16), pair = Dot::kPair, block = kAttentionBlock;
  const std::int64_t lanes = kAttentionTile + kAttentionGap;
  return {arena.take<Word>(block * width / pair),
          arena.take<Word>(block * width / pair),
          arena.take<Word>(block * (wide + kAttentionGap) / pair),
          arena.take<Word>(block * lanes / pair),
          arena.take<Word>(block * lanes / pair),
          arena.take<Word>(block * lanes / pair)};
}

template <class Dot, class T>
void backward_tile(const SharedAttentionParams& p, const AttentionTile& tile, const KeySums& sums,
                   Arena arena) {
  const std::int64_t wide = round_up(p.width, 16);
  const Keys keys(p, tile.document);
  const Lanes lanes(p, tile, arena.take(kAttentionTile));
  const TileRows<Dot> rows = take_rows<Dot>(arena, p.width);
  const BlockWords<Dot> words = take_block<Dot>(arena, p.width);
  pack_tile<Dot, T>(lanes, rows);
  const auto each_block = [&](auto&& visit) {
    Arena rest = arena;
    for (std::int64_t begin = 0; begin < lanes.most;) {
      const std::int64_t end = keys.block_end(begin, lanes.most);
      const std::int64_t size = round_up(end - begin, kProductRows) * lanes.stride;
      visit(KeyBlock<Dot>{begin, end - begin, rest.take(size), rest.take(size)});
      begin = end;
    }
  };
  each_block(
      [&](const KeyBlock<Dot>& block) { weigh_block<Dot, T>(block, words, rows, lanes, keys); });
  finish_sums(lanes, p.grad_lse, rows.norm, rows.delta);
  each_block([&](const KeyBlock<Dot>& block) {
    add_block<Dot, T>(block, words, rows, lanes, keys, sums);
  });
  for (std::int64_t n = 0; n < lanes.count; ++n) {
    write_row<typename Dot::Vec>(row_of<T>(p.grad_q, lanes.row(n), lanes.head(n)),
                                 rows.grad_q + n * wide, p.scale, p.width);
  }
}

template <class Dot, class T>
void write_rows(const HeadRows& to, std::int64_t row, std::int64_t count, std::int64_t group,
                const float* from, float factor, std::int64_t width) {
  for (std::int64_t j = 0; j < count; ++j) {
    write_row<typename Dot::Vec>(row_of<T>(to, row + j, group), from + j * round_up(width, 16),
                                 factor, width);
  }
}

template <class Dot, class T>
void attention_backward(const SharedAttentionParams& p, const AttentionChain& chain,
                        float* scratch) {
  const std::int64_t wide = round_up(p.width, 16), share = p.heads / p.groups;
  std::int64_t cached = 0, prefix_row = 0, most = 0;
  if (chain.prefix >= 0) {
    prefix_row = p.cu_prefix[chain.prefix];
    cached = p.cu_prefix[chain.prefix + 1] - prefix_row;
  }
  for (std::int64_t i = 0; i < chain.count; ++i) {
    const std::int64_t r = chain.document[i];
    most = std::max<std::int64_t>(most, p.cu_k[r + 1] - p.cu_k[r]);
  }
  Arena arena{scratch};
  const std::int64_t rows = cached + most + kAttentionBlock;
  float* grad_k = arena.take(rows * wide);
  float* grad_v = arena.take(rows * wide);
  const KeySums sums{grad_k, grad_v, grad_k + cached * wide, grad_v + cached * wide, cached};
  std::fill_n(grad_k, cached * wide, 0.0f);
  std::fill_n(grad_v, cached * wide, 0.0f);
  for (std::int64_t i = 0; i < chain.count; ++i) {
    const std::int64_t r = chain.document[i];
    const std::int64_t own = p.cu_k[r + 1] - p.cu_k[r];
    std::fill_n(grad_k + cached * wide, (own + kAttentionBlock) * wide, 0.0f);
    std::fill_n(grad_v + cached * wide, (own + kAttentionBlock) * wide, 0.0f);
    const std::int64_t queries = (p.cu_q[r + 1] - p.cu_q[r]) * share;
    for (std::int64_t begin = 0; begin < queries; begin += kAttentionTile) {
      const std::int64_t end = std::min(queries, begin + kAttentionTile);
      backward_tile<Dot, T>(p, {r, chain.group, begin, end}, sums, arena);
    }
    write_rows<Dot, T>(p.grad_k, p.cu_k[r], own, chain.group, grad_k + cached * wide, p.scale,
                       p.width);
    write_rows<Dot, T>(p.grad_v, p.cu_k[r], own, chain.group, grad_v + cached * wide, 1.0f,
                       p.width);
  }
  if (chain.prefix < 0) return;
  write_rows<Dot, T>(p.grad_prefix_k, prefix_row, cached, chain.group, grad_k, p.scale, p.width);
  write_rows<Dot, T>(p.grad_prefix_v, prefix_row, cached, chain.group, grad_v, 1.0f, p.width);
}

template <class Dot, class T>
void attention_piece(const SharedAttentionParams& p, const AttentionPiece& piece, float* scratch) {
  const std::int64_t wide = round_up(p.width, 16);
  float* k = piece.sums;
  float* v = k + piece.rows * wide;
  std::fill_n(k, 2 * piece.rows * wide, 0.0f);
  KeySums sums{k, v, k, v, 0};
  if (piece.prefix >= 0) {
    sums.cached = p.cu_prefix[piece.prefix + 1] - p.cu_prefix[piece.prefix];
    sums.own_k += (sums.cached + kGradientGap) * wide;
    sums.own_v += (sums.cached + kGradientGap) * wide;
  }
  for (std::int64_t i = 0; i < piece.count; ++i) {
    const std::int64_t r = piece.tile[i].document;
    backward_tile<Dot, T>(p, piece.tile[i], sums, Arena{scratch});
    if (i + 1 < piece.count && piece.tile[i + 1].document != r) {
      const std::int64_t own = p.cu_k[r + 1] - p.cu_k[r] + kGradientGap;
      sums.own_k += own * wide;
      sums.own_v += own * wide;
    }
  }
}

// In the order of the pieces, which no number of threads changes.
template <class Dot, class T>
void sum_pieces(const SharedAttentionParams& p, const AttentionSum& sum, float* total) {
  using Vec = typename Dot::Vec;
  const std::int64_t wide = round_up(p.width, 16);
  for (std::int64_t j = 0; j < sum.count; ++j) {
    for (std::int64_t d = 0; d < wide; d += Vec::kLanes) {
      auto value = Vec::splat(0.0f);
      for (std::int64_t i = 0; i < sum.pieces; ++i) {
        value = Vec::add(value, Vec::load(sum.from[i] + j * wide + d, Vec::kLanes));
      }
      Vec::store(total + d, value, Vec::kLanes);
    }
    write_row<Vec>(row_of<T>(sum.to, sum.row + j, sum.group), total, sum.factor, p.width);
  }
}

template <class Dot, class T>
AttentionKernels attention_kernels() {
  return {attention_forward<Dot, T>,
          attention_backward<Dot, T>,
          attention_piece<Dot, T>,
          sum_pieces<Dot, T>,
          nullptr,
          nullptr};
}

template <class Vec>
AttentionKernels attention_kernels_f32(DType dtype) {
  return dtype == DType::kBF16 ? attention_kernels<DotF32<Vec>, bf16>()
                               : attention_kernels<DotF32<Vec>, float>();
}

}  // namespace
}  // namespace vlakern
