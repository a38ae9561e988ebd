// Words of two bf16 for the instruction that multiplies them in pairs and adds to fp32.
#pragma once

#include <immintrin.h>

#include "common/vec_avx512bf16.h"

namespace vlakern {
namespace {

// vdpbf16ps rounds after each of its two additions, to nearest even, and flushes subnormals.
struct DotBf16 {
  using Vec = VecAvx512Bf16;
  using Word = std::uint32_t;
  static constexpr int kPair = 2;
  static constexpr std::int64_t kSteps = 128;
  static constexpr int kVectors = 3;
  using Packed = __m512i;
  static Packed load(const Word* p) { return _mm512_loadu_si512(p); }
  static Packed broadcast(const Word* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
  static __m512 dot(__m512 sum, Packed a, Packed b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
  static void store_keys(Word* first, Word*, __m512 even, __m512 odd) {
    const __m512i low = _mm512_cvtepu16_epi32(round(even));
    const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(round(odd)), 16);
    _mm512_storeu_si512(first, _mm512_or_si512(low, high));
  }
  static void store_queries(Word* p, __m512 value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round(value));
  }
  static void interleave(const bf16* first, const bf16* second, std::int64_t width, Word* out) {
    for (std::int64_t d = 0; d < width; d += 16) {
      const __mmask16 some = Vec::leading(static_cast<int>(std::min<std::int64_t>(16, width - d)));
      const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, first + d));
      __m512i high = _mm512_setzero_si512();
      if (second != nullptr) {
        high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, second + d));
      }
      _mm512_mask_storeu_epi32(out + d, some, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }

 private:
  static __m256i round(__m512 value) { return (__m256i)_mm512_cvtneps_pbh(value); }
};

}  // namespace
}  // namespace vlakern
