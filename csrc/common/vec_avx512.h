// Sixteen fp32 lanes of AVX-512 (F, BW, VL, DQ); `n` is how many leading lanes may be touched.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "common/number.h"

namespace vlakern {
namespace {

struct VecAvx512 {
  static constexpr int kLanes = 16;
  using Float = __m512;
  using Mask = __mmask16;
  using Bits = __m512i;

  static Float load(const float* p, int n) { return _mm512_maskz_loadu_ps(leading(n), p); }
  static Float load(const bf16* p, int n) {
    const __m256i bits = _mm256_maskz_loadu_epi16(leading(n), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static Float load(const f16* p, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(leading(n), p));
  }

  static void store(float* p, Float value, int n) { _mm512_mask_storeu_ps(p, leading(n), value); }
  static void store(bf16* p, Float value, int n) {
    _mm256_mask_storeu_epi16(p, leading(n), round_bf16(value));
  }
  static void store(f16* p, Float value, int n) {
    _mm256_mask_storeu_epi16(p, leading(n), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }

  static Mask nonzero(const std::uint8_t* p, int n) {
    const __m128i bytes = _mm_maskz_loadu_epi8(leading(n), p);
    return _mm_test_epi8_mask(bytes, bytes);
  }
  static Float splat(float value) { return _mm512_set1_ps(value); }

  // Lanes as unsigned 32-bit integers, modulo 2^32.
  static Bits bits_splat(std::uint32_t value) { return _mm512_set1_epi32(static_cast<int>(value)); }
  static Bits bits_iota() {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
  static Bits bits_add(Bits a, Bits b) { return _mm512_add_epi32(a, b); }
  static Bits bits_and(Bits a, Bits b) { return _mm512_and_si512(a, b); }
  static Bits bits_xor(Bits a, Bits b) { return _mm512_xor_si512(a, b); }
  template <int kCount>
  static Bits bits_left(Bits a) {
    return _mm512_slli_epi32(a, kCount);
  }
  template <int kCount>
  static Bits bits_right(Bits a) {
    return _mm512_srli_epi32(a, kCount);
  }
  static void bits_product(Bits a, Bits b, Bits* high, Bits* low) {
    const __m512i even = _mm512_mul_epu32(a, b);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
    *high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
    *low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  }
  // Products of 64 bits: numbers in every other lane, whose neighbours mean nothing.
  static constexpr bool kHalves = true;
  static Bits bits_odd(Bits a) { return _mm512_srli_epi64(a, 32); }
  static Bits bits_join(Bits even, Bits odd) {
    return _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  }
  static Bits bits_wide_product(Bits a, Bits b) { return _mm512_mul_epu32(a, b); }
  static Bits bits_of_float(Float a) { return _mm512_castps_si512(a); }
  static Float float_of_bits(Bits a) { return _mm512_castsi512_ps(a); }
  static Float from_signed(Bits a) { return _mm512_cvtepi32_ps(a); }
  static Float sqrt(Float a) { return _mm512_sqrt_ps(a); }
  // sums[lane] += a.
  static void accumulate(double* sums, Float a) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(a));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
    _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), low));
    _mm512_storeu_pd(sums + 8, _mm512_add_pd(_mm512_loadu_pd(sums + 8), high));
  }

  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float select(Mask mask, Float yes, Float no) {
    return _mm512_mask_blend_ps(mask, no, yes);
  }

  static Float from_ints(const std::int32_t* p) {
    return _mm512_cvtepi32_ps(_mm512_loadu_si512(p));
  }
  // Pairs of bfloat16: the first of each, and the second.
  static void load_pairs(const bf16* p, Float& first, Float& second) {
    const __m512i pairs = _mm512_loadu_si512(p);
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    first = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    second = _mm512_castsi512_ps(_mm512_and_si512(pairs, high));
  }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  // Lane i plus lane i + 8, then 4, 2, 1 apart: the one order of every instruction set.
  static float sum_lanes(Float a) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 v = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
  }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  // A NaN in b is kept.
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
  static Float abs(Float a) { return _mm512_abs_ps(a); }
  static Mask less(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static Float round(Float a) { return _mm512_roundscale_ps(a, 0x08); }  // halves to even
  // 2^n for an integral n of [-126, 127].
  static Float pow2(Float n) {
    const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
  }

  static __m256i round_bf16(Float value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i biased = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(biased, odd), 16);
    const Mask is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(
        _mm512_mask_blend_epi32(is_nan, rounded, _mm512_set1_epi32(0x7fc0)));
  }
  static Mask leading(int n) { return static_cast<Mask>((1u << n) - 1u); }
};

}  // namespace
}  // namespace vlakern
