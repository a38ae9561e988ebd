// Eight fp32 lanes of AVX2 + FMA + F16C; `n` is how many leading lanes of memory may be touched.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "common/number.h"

namespace vlakern {
namespace {

struct VecAvx2 {
  static constexpr int kLanes = 8;
  using Float = __m256;
  using Mask = __m256;
  using Bits = __m256i;

  static Float load(const float* p, int n) {
    if (n == kLanes) return _mm256_loadu_ps(p);
    return _mm256_maskload_ps(p, leading(n));
  }
  static Float load(const bf16* p, int n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p, n)), 16));
  }
  static Float load(const f16* p, int n) { return _mm256_cvtph_ps(load16(p, n)); }

  static void store(float* p, Float value, int n) {
    if (n == kLanes) return _mm256_storeu_ps(p, value);
    _mm256_maskstore_ps(p, leading(n), value);
  }
  static void store(bf16* p, Float value, int n) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i biased = _mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(biased, odd), 16);
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i wide = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), is_nan);
    // packus works within 128-bit halves: bring the two halves together.
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(wide, wide), 0xd8);
    store16(p, _mm256_castsi256_si128(packed), n);
  }
  static void store(f16* p, Float value, int n) {
    store16(p, _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT), n);
  }

  static Mask nonzero(const std::uint8_t* p, int n) {
    std::uint64_t bytes = 0;
    std::memcpy(&bytes, p, static_cast<std::size_t>(n));
    const __m128i low = _mm_cvtsi64_si128(static_cast<long long>(bytes));
    return _mm256_castsi256_ps(
        _mm256_cmpgt_epi32(_mm256_cvtepu8_epi32(low), _mm256_setzero_si256()));
  }
  static Float splat(float value) { return _mm256_set1_ps(value); }

  // Lanes as unsigned 32-bit integers, modulo 2^32.
  static Bits bits_splat(std::uint32_t value) { return _mm256_set1_epi32(static_cast<int>(value)); }
  static Bits bits_iota() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
  static Bits bits_add(Bits a, Bits b) { return _mm256_add_epi32(a, b); }
  static Bits bits_and(Bits a, Bits b) { return _mm256_and_si256(a, b); }
  static Bits bits_xor(Bits a, Bits b) { return _mm256_xor_si256(a, b); }
  template <int kCount>
  static Bits bits_left(Bits a) {
    return _mm256_slli_epi32(a, kCount);
  }
  template <int kCount>
  static Bits bits_right(Bits a) {
    return _mm256_srli_epi32(a, kCount);
  }
  static void bits_product(Bits a, Bits b, Bits* high, Bits* low) {
    const __m256i even = _mm256_mul_epu32(a, b);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
    *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  }
  // Products of 64 bits: numbers in every other lane, whose neighbours mean nothing.
  static constexpr bool kHalves = true;
  static Bits bits_odd(Bits a) { return _mm256_srli_epi64(a, 32); }
  static Bits bits_join(Bits even, Bits odd) {
    return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  }
  static Bits bits_wide_product(Bits a, Bits b) { return _mm256_mul_epu32(a, b); }
  static Bits bits_of_float(Float a) { return _mm256_castps_si256(a); }
  static Float float_of_bits(Bits a) { return _mm256_castsi256_ps(a); }
  static Float from_signed(Bits a) { return _mm256_cvtepi32_ps(a); }
  static Float sqrt(Float a) { return _mm256_sqrt_ps(a); }
  // sums[lane] += a.
  static void accumulate(double* sums, Float a) {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(a));
    const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
    _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_loadu_pd(sums), low));
    _mm256_storeu_pd(sums + 4, _mm256_add_pd(_mm256_loadu_pd(sums + 4), high));
  }

  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float select(Mask mask, Float yes, Float no) { return _mm256_blendv_ps(no, yes, mask); }

  static Float from_ints(const std::int32_t* p) {
    return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  // Pairs of bfloat16: the first of each, and the second.
  static void load_pairs(const bf16* p, Float& first, Float& second) {
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    first = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    second = _mm256_castsi256_ps(_mm256_and_si256(pairs, high));
  }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  // Lane i plus lane i + 4, then 2, then 1 apart: the one order of every instruction set.
  static float sum_lanes(Float a) {
    __m128 v = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
  }
  static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
  // A NaN in b is kept.
  static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
  static Float abs(Float a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static Mask less(Float a, Float b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static Float round(Float a) { return _mm256_round_ps(a, 0x08); }  // halves to even
  // 2^n for an integral n of [-126, 127].
  static Float pow2(Float n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }

 private:
  static __m256i leading(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static __m128i load16(const void* p, int n) {
    if (n == kLanes) return _mm_loadu_si128(static_cast<const __m128i*>(p));
    std::uint16_t lanes[kLanes] = {};
    std::memcpy(lanes, p, 2 * static_cast<std::size_t>(n));
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(lanes));
  }
  static void store16(void* p, __m128i value, int n) {
    if (n == kLanes) return _mm_storeu_si128(static_cast<__m128i*>(p), value);
    std::uint16_t lanes[kLanes];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(lanes), value);
    std::memcpy(p, lanes, 2 * static_cast<std::size_t>(n));
  }
};

}  // namespace
}  // namespace vlakern
