// One tile of shared_attention forward; included by one translation unit per ISA.
//
// Scores are kept transposed, keys by queries: the queries of all heads that read one key-value
// head are the lanes, so that maxima, sums and exponentials run down the keys without crossing
// lanes and K and V are read once per tile, row by row, as broadcasts and as lanes.
#pragma once

#include <cmath>
#include <limits>

#include "common/vec_math.h"
#include "shared_attention/shared_attention_dot.h"
#include "shared_attention/shared_attention_tile.h"

namespace vlakern {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// scale * log2(e): fp32 products alone would carry the rounding of their constant to every score.
struct Slope {
  float high, low;
  explicit Slope(float scale) {
    const double exact = double{scale} * 1.4426950408889634;
    high = static_cast<float>(exact);
    low = static_cast<float>(exact - double{high});
  }
};

// 2^(slope * (score - base)). The difference first: a product with the slope would round away what
// large scores differ by.
template <class Dot>
inline typename Dot::Vec::Float power(typename Dot::Vec::Float score, const Slope& slope,
                                      typename Dot::Vec::Float base) {
  using Vec = typename Dot::Vec;
  const auto above = Vec::sub(score, base);
  auto x = Vec::mul(above, Vec::splat(slope.high));
  if (Dot::kPair == 1) x = Vec::fma(above, Vec::splat(slope.low), x);
  return vec_exp2<Vec>(x);
}

// Scratch memory, piece after piece.
struct Arena {
  float* next;
  template <class Word = float>
  Word* take(std::int64_t count) {
    static_assert(sizeof(Word) == sizeof(float), "scratch is counted in words");
    float* piece = next;
    next += round_up(count, 16);
    return reinterpret_cast<Word*>(piece);
  }
};

template <class T>
inline T* row_of(const HeadRows& t, std::int64_t row, std::int64_t head) {
  return static_cast<T*>(t.data) + row * t.row + head * t.head;
}

// Where the logical keys of one document are.
struct Keys {
  std::int64_t cached;  // how many come first, from the prefix
  std::int64_t count;
  std::int64_t prefix_row;
  std::int64_t own_row;

  Keys(const SharedAttentionParams& p, std::int64_t document) {
    cached = prefix_row = 0;
    if (p.prefix_index != nullptr) {
      const std::int32_t* cu = p.cu_prefix + p.prefix_index[document];
      prefix_row = cu[0];
      cached = cu[1] - cu[0];
    }
    own_row = p.cu_k[document];
    count = cached + p.cu_k[document + 1] - own_row;
  }
  template <class T>
  T* row(const HeadRows& prefix, const HeadRows& own, std::int64_t key, std::int64_t group) const {
    return key < cached ? row_of<T>(prefix, prefix_row + key, group)
                        : row_of<T>(own, own_row + key - cached, group);
  }
  // The end of the block that begins at `key`: blocks do not cross from the prefix to own keys.
  std::int64_t block_end(std::int64_t key, std::int64_t most) const {
    const std::int64_t part = key < cached ? std::min(cached, most) : most;
    return std::min(key + kAttentionBlock, part);
  }
};

// Brings rows of the next block into the second cache while products of this one are made: rows of
// one head are too far apart for the hardware to see where they go.
template <class T>
struct Ahead {
  const Keys& keys;
  const HeadRows& prefix;
  const HeadRows& own;
  std::int64_t next, end, group, width;

  void operator()() {
    const std::int64_t stop = std::min(end, next + kProductRows);
    for (; next < stop; ++next) {
      const T* row = keys.row<T>(prefix, own, next, group);
      for (std::int64_t d = 0; d < width; d += 64 / static_cast<std::int64_t>(sizeof(T))) {
        __builtin_prefetch(row + d, 0, 2);
      }
    }
  }
};

// The query rows of one tile: which row and head each lane is, and how far it sees.
struct Lanes {
  const SharedAttentionParams* p;
  std::int64_t first, count, padded, share, group;
  std::int64_t stride;       // of matrices whose rows are lanes: no power of two, for the caches
  std::int64_t least, most;  // of the ends of real lanes
  float* end;                // [padded] kv_end as fp32, 0 for padding

  Lanes(const SharedAttentionParams& params, const AttentionTile& tile, float* ends)
      : p(&params), end(ends) {
    share = params.heads / params.groups;
    group = tile.group;
    count = tile.end - tile.begin;
    padded = round_up(count, kAttentionUnit);
    stride = padded + kAttentionGap;
    first = params.cu_q[tile.document] * share + tile.begin;
    least = std::numeric_limits<std::int64_t>::max();
    most = 0;
    for (std::int64_t n = 0; n < padded; ++n) {
      const std::int64_t seen = n < count ? params.kv_end[query(n)] : 0;
      end[n] = static_cast<float>(seen);
      least = std::min(least, seen);
      most = std::max(most, seen);
    }
  }
  std::int64_t query(std::int64_t n) const { return (first + n) / share; }
  std::int64_t row(std::int64_t n) const {
    const std::int64_t i = query(n);
    return p->rows == nullptr ? i : p->rows[i];
  }
  std::int64_t head(std::int64_t n) const { return group * share + (first + n) % share; }
};

// [width / kPair][stride]: the rows of all lanes, transposed; zeros in padding.
template <class Dot, class T>
void pack_queries(const Lanes& lanes, const HeadRows& from, typename Dot::Word* out) {
  const std::int64_t width = lanes.p->width;
  for (std::int64_t n = 0; n < lanes.count; ++n) {
    pack_lane<Dot>(row_of<T>(from, lanes.row(n), lanes.head(n)), width, lanes.stride, out + n);
  }
  for (std::int64_t n = lanes.count; n < lanes.padded; ++n) {
    for (std::int64_t w = 0; w < width / Dot::kPair; ++w) out[w * lanes.stride + n] = 0;
  }
}

// A block of keys or values by rows, [rows up to a multiple of kProductRows][width / kPair].
template <class Dot, class T>
void pack_keys(const Keys& keys, const HeadRows& prefix, const HeadRows& own, std::int64_t begin,
               std::int64_t end, std::int64_t group, std::int64_t width, typename Dot::Word* out) {
  const std::int64_t words = width / Dot::kPair;
  for (std::int64_t key = begin; key < end; ++key) {
    pack_row<Dot>(keys.row<T>(prefix, own, key, group), width, out);
    out += words;
  }
  const std::int64_t padding = round_up(end - begin, kProductRows) - (end - begin);
  std::fill_n(out, padding * words, typename Dot::Word{});
}

// The same block with kPair keys in a word, [keys / kPair][lanes + kAttentionGap], zeros from width
// to lanes.
template <class Dot, class T>
void pack_key_pairs(const Keys& keys, const HeadRows& prefix, const HeadRows& own,
                    std::int64_t begin, std::int64_t end, std::int64_t group, std::int64_t width,
                    typename Dot::Word* out) {
  const std::int64_t lanes = round_up(width, 16);
  for (std::int64_t key = begin; key < end; key += Dot::kPair) {
    const T* second = nullptr;
    if (Dot::kPair == 2 && key + 1 < end) second = keys.row<T>(prefix, own, key + 1, group);
    pack_rows_together<Dot>(keys.row<T>(prefix, own, key, group), second, width, out);
    std::fill(out + width, out + lanes, typename Dot::Word{});
    out += lanes + kAttentionGap;
  }
}

// The running softmax of every lane; scores carry log2(e) * scale, so that powers are of two.
struct Running {
  float* peak;    // largest score so far
  float* sum;     // of 2^(score - peak)
  float* factor;  // what the last block's peak made of the sums before it
};

// One block for the vector of lanes at `lane`: weights by pairs of keys.
template <class Dot, bool kMasked>
inline void soften(const float* scores, std::int64_t stride, std::int64_t begin, std::int64_t count,
                   const Slope& slope, const float* end, std::int64_t lane, const Running& run,
                   typename Dot::Word* weights) {
  using Vec = typename Dot::Vec;
  constexpr int kLanes = Vec::kLanes;
  const auto seen = Vec::load(end + lane, kLanes);
  const auto before = Vec::load(run.peak + lane, kLanes);
  const auto masked = [&](std::int64_t j, typename Vec::Float value, float instead) {
    if (!kMasked) return value;
    const auto visible = Vec::less(Vec::splat(static_cast<float>(begin + j)), seen);
    return Vec::select(visible, value, Vec::splat(instead));
  };
  const float* at = scores + lane;
  auto peak = before;
  for (std::int64_t j = 0; j < count; ++j) {
    peak = Vec::max(peak, masked(j, Vec::load(at + j * stride, kLanes), -kInfinity));
  }
  // A lane that has seen nothing subtracts 0, and one that had not is corrected by 1: an infinity
  // would become NaN times a scale of 0 or less another infinity.
  const auto none = Vec::splat(-kInfinity), zero = Vec::splat(0.0f);
  const auto base = Vec::select(Vec::less(none, peak), peak, zero);
  auto sum = zero;
  const auto weight = [&](std::int64_t j) {
    const auto score = Vec::load(at + j * stride, kLanes);
    const auto value = masked(j, power<Dot>(score, slope, base), 0.0f);
    sum = Vec::add(sum, value);
    return value;
  };
  for (std::int64_t j = 0; j < count; j += 2) {
    const auto even = weight(j);
    const auto odd = j + 1 < count ? weight(j + 1) : zero;
    auto* to = weights + j / Dot::kPair * stride + lane;
    Dot::store_keys(to, to + stride, even, odd);
  }
  const auto last = Vec::select(Vec::less(none, before), before, base);
  // Exactly 1 where the peak stays: how many blocks a row's tile has must not change its bits.
  const auto correction = power<Dot>(last, slope, base);
  const auto total = Vec::fma(Vec::load(run.sum + lane, kLanes), correction, sum);
  Vec::store(run.peak + lane, peak, kLanes);
  Vec::store(run.sum + lane, total, kLanes);
  Vec::store(run.factor + lane, correction, kLanes);
}

template <class Vec, class T>
inline void write_row(T* to, const float* from, float factor, std::int64_t width) {
  for (std::int64_t d = 0; d < width; d += Vec::kLanes) {
    const int n = static_cast<int>(std::min<std::int64_t>(Vec::kLanes, width - d));
    Vec::store(to + d, Vec::mul(Vec::load(from + d, n), Vec::splat(factor)), n);
  }
}

template <class Dot, class T>
void attention_forward(const SharedAttentionParams& p, const AttentionTile& tile, float* scratch) {
  using Vec = typename Dot::Vec;
  using Word = typename Dot::Word;
  constexpr int kLanes = Vec::kLanes;
  const std::int64_t wide = round_up(p.width, 16), words = p.width / Dot::kPair;
  Arena arena{scratch};
  const Keys keys(p, tile.document);
  const Lanes lanes(p, tile, arena.take(kAttentionTile));
  const Running run{arena.take(kAttentionTile), arena.take(kAttentionTile),
                    arena.take(kAttentionTile)};
  Word* queries = arena.take<Word>((kAttentionTile + kAttentionGap) * words);
  Word* block_k = arena.take<Word>(kAttentionBlock * words);
  Word* block_v = arena.take<Word>(kAttentionBlock * (wide + kAttentionGap));
  Word* weights = arena.take<Word>(kAttentionBlock * (kAttentionTile + kAttentionGap));
  float* scores = arena.take(kAttentionBlock * (kAttentionTile + kAttentionGap));
  float* sums = arena.take(kAttentionTile * wide);
  const Slope slope(p.scale);

  pack_queries<Dot, T>(lanes, p.q, queries);
  std::fill_n(run.peak, lanes.padded, -kInfinity);
  std::fill_n(run.sum, lanes.padded, 0.0f);
  std::fill_n(sums, lanes.padded * wide, 0.0f);
  for (std::int64_t begin = 0; begin < lanes.most;) {
    const std::int64_t end = keys.block_end(begin, lanes.most), count = end - begin;
    pack_keys<Dot, T>(keys, p.prefix_k, p.k, begin, end, tile.group, p.width, block_k);
    products<Dot, Put::kSet>(block_k, words, 1, queries, lanes.stride, scores, lanes.stride,
                             round_up(count, kProductRows), lanes.padded, words, nullptr,
                             Ahead<T>{keys, p.prefix_v, p.v, begin, end, tile.group, p.width});
    for (std::int64_t lane = 0; lane < lanes.padded; lane += kLanes) {
      const auto step = end > lanes.least ? soften<Dot, true> : soften<Dot, false>;
      step(scores, lanes.stride, begin, count, slope, lanes.end, lane, run, weights);
    }
    pack_key_pairs<Dot, T>(keys, p.prefix_v, p.v, begin, end, tile.group, p.width, block_v);
    products<Dot, Put::kScaleAdd>(
        weights, 1, lanes.stride, block_v, wide + kAttentionGap, sums, wide,
        round_up(lanes.count, kProductRows), wide, (count + Dot::kPair - 1) / Dot::kPair,
        run.factor,
        Ahead<T>{keys, p.prefix_k, p.k, end, keys.block_end(end, lanes.most), tile.group, p.width});
    begin = end;
  }
  for (std::int64_t n = 0; n < lanes.count; ++n) {
    const bool saw = run.sum[n] != 0;  // NaN is an answer, too
    const std::int64_t row = lanes.row(n), head = lanes.head(n);
    write_row<Vec>(row_of<T>(p.out, row, head), sums + n * wide, saw ? 1.0f / run.sum[n] : 0.0f,
                   p.width);
    const double peak = double{run.peak[n]} * double{p.scale};
    const auto lse = static_cast<float>(peak + double{std::log(run.sum[n])});
    *row_of<float>(p.lse, row, head) = saw ? lse : -kInfinity;
  }
}

}  // namespace
}  // namespace vlakern
