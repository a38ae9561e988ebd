// One unit of shared_attention forward in bf16: products of tiles whose sums stay in registers.
//
// Scores are queries by keys. A block of keys and values is packed once for all tiles of the unit;
// the sums of every tile wait in a near cache for the next block.
#pragma once

#include <cmath>
#include <limits>

#include "common/vec_avx512bf16.h"
#include "shared_attention/shared_attention_pack_bf16.h"
#include "shared_attention/shared_attention_tile.h"

namespace vlakern {
namespace {

constexpr std::int64_t kRowBytes = 576;  // between rows of queries and of weights: no power of two
constexpr std::int64_t kScoreRow = kBlockPanels * kPanel + 16;  // floats between rows of scores
constexpr float kNone = -std::numeric_limits<float>::infinity();

// Some steps of a product: rows of words, kRowBytes apart, and panels of words; at each a line of
// what comes next is brought into the second cache.
struct Steps {
  const char* x;
  const char* w;
  std::int64_t count;
  const char* ahead;
  std::int64_t ahead_step;
};

// C[r][0 .. 16 kVectors) = sum of x[r][s] · w[s], plus C · factor[r] if there was something before.
template <int kRows, int kVectors, bool kFirst>
void multiply(const Steps* parts, int count, float* c, std::int64_t c_row, const float* factor) {
  __m512 sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm512_setzero_ps();
  }
  for (int part = 0; part < count; ++part) {
    const char *x = parts[part].x, *w = parts[part].w, *ahead = parts[part].ahead;
    const std::int64_t ahead_step = parts[part].ahead_step;
    for (std::int64_t s = 0; s < parts[part].count; ++s, x += 4, w += kPanelStep) {
      __builtin_prefetch(ahead, 0, 2);
      ahead += ahead_step;
      __m512bh right[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) right[v] = (__m512bh)_mm512_load_si512(w + 64 * v);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        int word;
        std::memcpy(&word, x + r * kRowBytes, sizeof(word));
        const auto left = (__m512bh)_mm512_set1_epi32(word);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          sum[r][v] = _mm512_dpbf16_ps(sum[r][v], left, right[v]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      float* at = c + r * c_row + 16 * v;
      if (!kFirst) {
        sum[r][v] = _mm512_fmadd_ps(_mm512_load_ps(at), _mm512_set1_ps(factor[r]), sum[r][v]);
      }
      _mm512_store_ps(at, sum[r][v]);
    }
  }
}

using Multiply = void (*)(const Steps*, int, float*, std::int64_t, const float*);

template <int kVectors, bool kFirst, int... kRows>
Multiply multiply_of(std::int64_t rows, std::integer_sequence<int, kRows...>) {
  static constexpr Multiply kTable[] = {multiply<kRows + 1, kVectors, kFirst>...};
  return kTable[rows - 1];
}

// The products of a tile of `rows` rows: of one vector and of two.
template <bool kFirst>
struct Products {
  Multiply one, two;
  explicit Products(std::int64_t rows) {
    constexpr auto kAll = std::make_integer_sequence<int, kTileRows>();
    one = multiply_of<1, kFirst>(rows, kAll);
    two = multiply_of<2, kFirst>(rows, kAll);
  }
  Multiply operator()(std::int64_t columns) const { return columns > 16 ? two : one; }
};

// 2^x for x <= 127, 2e-7; 0 far below.
inline __m512 power_of_two(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(x, 0x08), f = _mm512_sub_ps(x, n);
  __m512 y = _mm512_set1_ps(0.00133908668f);
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.00966637395f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.0555035695f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.240223482f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.693147182f));
  return _mm512_scalef_ps(_mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f)), n);
}

// A run of keys within a block, packed before or now.
struct Part {
  PackedKeys packed;    // from its first panel on
  std::int64_t column;  // of scores and weights
  std::int64_t first;   // logical key
  std::int64_t keys;

  std::int64_t seen(std::int64_t end) const {
    return std::clamp<std::int64_t>(end - first, 0, keys);
  }
};

struct Block {
  Part part[2];
  int parts;
};

// The running softmax of the rows of a tile; one vector of each.
struct Softmax {
  alignas(64) float peak[16];    // largest score
  alignas(64) float base[16];    // the peak, or 0 where nothing was seen
  alignas(64) float sum[16];     // of the weights
  alignas(64) float factor[16];  // what the last block's peak made of all before
};

struct Tile {
  std::int64_t first, rows;  // of the unit's rows
  std::int64_t most;         // of their ends
  Softmax run;
};

inline __m512 row_peak(const float* scores, const Block& block, std::int64_t end) {
  __m512 peak = _mm512_set1_ps(kNone);
  for (int i = 0; i < block.parts; ++i) {
    const float* at = scores + block.part[i].column;
    const std::int64_t seen = block.part[i].seen(end);
    std::int64_t j = 0;
    for (; j + 16 <= seen; j += 16) peak = _mm512_max_ps(peak, _mm512_load_ps(at + j));
    if (j < seen)
      peak = _mm512_mask_max_ps(peak, leading16(seen - j), peak, _mm512_load_ps(at + j));
  }
  return peak;
}

// Weights of one row as bf16, zeros up to `most`, and their sum.
inline float weigh_row(const float* scores, const Block& block, std::int64_t end, std::int64_t most,
                       float high, float base, char* weights) {
  const __m512 slope = _mm512_set1_ps(high), peak = _mm512_set1_ps(base);
  // The difference first: a product with the slope would round away what large scores differ by.
  const auto weight = [&](const float* score) {
    return power_of_two(_mm512_mul_ps(_mm512_sub_ps(_mm512_load_ps(score), peak), slope));
  };
  __m512 even = _mm512_setzero_ps(), odd = even;
  for (int i = 0; i < block.parts; ++i) {
    const Part& part = block.part[i];
    const float* at = scores + part.column;
    char* to = weights + 2 * part.column;
    const std::int64_t seen = part.seen(end), all = part.seen(most);
    std::int64_t j = 0;
    const auto pair = [&](__mmask16 low_mask, __mmask16 high_mask) {
      const __m512 low = _mm512_maskz_mov_ps(low_mask, weight(at + j));
      const __m512 top = _mm512_maskz_mov_ps(high_mask, weight(at + j + 16));
      even = _mm512_add_ps(even, low);
      odd = _mm512_add_ps(odd, top);
      _mm512_store_si512(to + 2 * j, (__m512i)_mm512_cvtne2ps_pbh(top, low));
    };
    for (; j + 32 <= seen; j += 32) pair(0xffff, 0xffff);
    if (j < seen) {
      pair(leading16(seen - j), leading16(std::max<std::int64_t>(0, seen - j - 16)));
      j += 32;
    }
    for (; j < all; j += 32) _mm512_store_si512(to + 2 * j, _mm512_setzero_si512());
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
}

// Scores become weights.
inline void soften_tile(const float* scores, const Block& block, const std::int32_t* end,
                        Tile& tile, float high, char* weights) {
  alignas(64) float top[16], sum[16] = {};
  for (int r = 0; r < 16; ++r) top[r] = kNone;
  for (std::int64_t r = 0; r < tile.rows; ++r) {
    top[r] = _mm512_reduce_max_ps(row_peak(scores + r * kScoreRow, block, end[r]));
  }
  Softmax& run = tile.run;
  const __m512 before = _mm512_load_ps(run.base), old = _mm512_load_ps(run.peak);
  const __m512 peak = _mm512_max_ps(old, _mm512_load_ps(top));
  // Rows that have seen nothing keep a base of 0: an infinity would become NaN.
  const __mmask16 some = _mm512_cmp_ps_mask(peak, _mm512_set1_ps(kNone), _CMP_NEQ_UQ);
  const __mmask16 had = _mm512_cmp_ps_mask(old, _mm512_set1_ps(kNone), _CMP_NEQ_UQ);
  const __m512 base = _mm512_maskz_mov_ps(some, peak);
  const __m512 fall = _mm512_maskz_sub_ps(had, before, base);
  _mm512_store_ps(run.factor, power_of_two(_mm512_mul_ps(fall, _mm512_set1_ps(high))));
  _mm512_store_ps(run.base, base);
  _mm512_store_ps(run.peak, peak);
  for (std::int64_t r = 0; r < tile.rows; ++r) {
    sum[r] = weigh_row(scores + r * kScoreRow, block, end[r], tile.most, high, run.base[r],
                       weights + r * kRowBytes);
  }
  const __m512 total =
      _mm512_fmadd_ps(_mm512_load_ps(run.sum), _mm512_load_ps(run.factor), _mm512_load_ps(sum));
  _mm512_store_ps(run.sum, total);
}

}  // namespace
}  // namespace vlakern
