// Brings keys and values into the order of shared_attention_packed.h.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "common/number.h"
#include "shared_attention/shared_attention_packed.h"

namespace vlakern {
namespace {

// Words of 16 rows become rows of 16 words.
[[gnu::always_inline]] inline void transpose_words(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 8; i += (i & 3) == 3 ? 5 : 1) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

constexpr std::int64_t kHalf = kPanel / 2;

inline __mmask16 leading16(std::int64_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << n) - 1u);
}

// So many keys further on, rows are brought near while this one is packed.
constexpr std::int64_t kPackAhead = 32;

// Keys of `width` numbers into the panels that begin at `out`.
inline void pack_k(const bf16* const* rows, std::int64_t count, std::int64_t width, char* out) {
  const std::int64_t words = width / 2;
  for (std::int64_t key = 0; key < count; key += kHalf) {
    char* half = out + key / kPanel * words * kPanelStep + key % kPanel * 4;
    const std::int64_t real = std::min(kHalf, count - key);
    const std::int64_t near = std::min(kHalf, count - key - kPackAhead);
    for (std::int64_t w = 0; w < words; w += 16) {
      const __mmask16 some = leading16(words - w);
      for (std::int64_t i = 0; i < near; ++i) {
        __builtin_prefetch(rows[key + kPackAhead + i] + 2 * w, 0, 2);
      }
      __m512i r[16];
      if (real == kHalf) {
        for (int i = 0; i < 16; ++i) r[i] = _mm512_maskz_loadu_epi32(some, rows[key + i] + 2 * w);
      } else {
        for (int i = 0; i < 16; ++i) {
          r[i] = i < real ? _mm512_maskz_loadu_epi32(some, rows[key + i] + 2 * w)
                          : _mm512_setzero_si512();
        }
      }
      transpose_words(r);
      char* to = half + w * kPanelStep;
      if (words - w >= 16) {
        for (int i = 0; i < 16; ++i) _mm512_store_si512(to + i * kPanelStep, r[i]);
      } else {
        for (int i = 0; i < words - w; ++i) _mm512_store_si512(to + i * kPanelStep, r[i]);
      }
    }
  }
}

// Values into the steps that begin at `out`, column panels `gap` bytes apart.
inline void pack_v(const bf16* const* rows, std::int64_t count, std::int64_t width,
                   std::int64_t gap, char* out) {
  alignas(64) static constexpr std::uint16_t kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                         37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                         11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (std::int64_t key = 0; key < count; key += 2, out += kPanelStep) {
    const bool both = key + 1 < count;
    const bf16 *first = rows[key], *second = rows[key + both];
    const bf16* ahead[2] = {rows[std::min(key + kPackAhead, count - 1)],
                            rows[std::min(key + kPackAhead + 1, count - 1)]};
    char* to = out;
    for (std::int64_t d = 0; d < width; d += kPanel, to += gap) {
      const std::int64_t left = width - d;
      const __mmask32 some = left >= 32 ? 0xffffffffu : (1u << left) - 1u;
      __builtin_prefetch(ahead[0] + d, 0, 2);
      __builtin_prefetch(ahead[1] + d, 0, 2);
      const __m512i a = _mm512_maskz_loadu_epi16(some, first + d);
      const __m512i b = _mm512_maskz_loadu_epi16(both ? some : 0, second + d);
      _mm512_store_si512(to, _mm512_permutex2var_epi16(a, low, b));
      _mm512_store_si512(to + 64, _mm512_permutex2var_epi16(a, high, b));
    }
  }
}

}  // namespace
}  // namespace vlakern
