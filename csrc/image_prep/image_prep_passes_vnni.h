// The passes with vpdpbusd, four taps a product; along x four outputs of four rows at a time.
#pragma once

#include "image_prep/image_prep_passes_avx2.h"

// Code that also has AVX-512 VBMI, which some processors with this file's instructions have not.
#define VLAKERN_VBMI __attribute__((target("avx512vbmi")))

namespace vlakern {
namespace {

struct VnniPasses {
  static constexpr ImagePrepLayout kLayout = ImagePrepLayout::kBytes;

  static void expand(const std::uint8_t* rgb, std::int64_t pixels, std::uint8_t* rgbx) {
    Avx2Passes::expand(rgb, pixels, rgbx);
  }

  static void columns(const std::uint8_t* const (&rows)[4], const ImagePrepColumns& table,
                      std::uint8_t* const (&out)[4]) {
    for (std::int64_t x = 0; x < table.count; x += 4) columns_at(rows, table, x, out);
  }

  // The same with vpermb, which picks the taps of four outputs out of 64 neighbouring bytes at
  // once; where their windows do not lie in as many, out of two times as many.
  VLAKERN_VBMI static void columns_vbmi(const std::uint8_t* const (&rows)[4],
                                        const ImagePrepColumns& table,
                                        std::uint8_t* const (&out)[4]) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i own = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m512i first_byte =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
    const __m512i by_channel =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, 2, 5, 8, 11));
    const std::int32_t* w = table.weights;
    for (std::int64_t x = 0; x < table.count; x += 4) {
      const std::int32_t* offset = table.offset + x;
      const std::int64_t begin = offset[0], bytes = offset[3] - begin + 12 * table.groups;
      if (bytes > kImagePrepReach) {
        columns_at(rows, table, x, out);
        w += 48 * table.groups;
        continue;
      }
      for (const std::uint8_t* row : rows) __builtin_prefetch(row + begin + table.ahead);
      const __m128i four = _mm_sub_epi32(load_pixels(reinterpret_cast<const std::uint8_t*>(offset)),
                                         _mm_set1_epi32(offset[0]));
      const __m512i starts = _mm512_permutexvar_epi32(own, _mm512_castsi128_si512(four));
      __m512i lanes = _mm512_add_epi8(_mm512_shuffle_epi8(starts, first_byte), by_channel);
      __m512i low[4], middle[4] = {zero, zero, zero, zero}, high[4] = {zero, zero, zero, zero};
      for (__m512i& one : low) one = _mm512_set1_epi32(1 << (kImagePrepBits - 1));
      for (int g = 0; g < table.groups; ++g, w += 48) {
        const __m512i w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + 16),
                      w2 = _mm512_loadu_si512(w + 32);
        for (int r = 0; r < 4; ++r) {
          const __m512i near = _mm512_loadu_si512(rows[r] + begin);
          const __m512i taps =
              bytes <= 64
                  ? _mm512_permutexvar_epi8(lanes, near)
                  : _mm512_permutex2var_epi8(near, lanes, _mm512_loadu_si512(rows[r] + begin + 64));
          low[r] = _mm512_dpbusd_epi32(low[r], taps, w0);
          middle[r] = _mm512_dpbusd_epi32(middle[r], taps, w1);
          high[r] = _mm512_dpbusd_epi32(high[r], taps, w2);
        }
        lanes = _mm512_add_epi8(lanes, _mm512_set1_epi8(12));
      }
      store_four(low, middle, high, out, 4 * x);
    }
  }

  static void blend(const std::uint8_t* const* rows, const std::int32_t* weights, int groups,
                    std::int64_t bytes, std::uint8_t* out) {
    const __m512i zero = _mm512_setzero_si512();
    for (std::int64_t i = 0; i < bytes; i += 64) {
      __m512i low[4], middle[4] = {zero, zero, zero, zero}, high[4] = {zero, zero, zero, zero};
      for (__m512i& one : low) one = _mm512_set1_epi32(1 << (kImagePrepBits - 1));
      for (int g = 0; g < groups; ++g) {
        const std::uint8_t* const* four = rows + 4 * g;
        const std::int32_t* w = weights + 3 * g;
        const __m512i a = _mm512_loadu_si512(four[0] + i), b = _mm512_loadu_si512(four[1] + i);
        const __m512i c = _mm512_loadu_si512(four[2] + i), d = _mm512_loadu_si512(four[3] + i);
        const __m512i ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b);
        const __m512i cd0 = _mm512_unpacklo_epi8(c, d), cd1 = _mm512_unpackhi_epi8(c, d);
        const __m512i taps[4] = {_mm512_unpacklo_epi16(ab0, cd0), _mm512_unpackhi_epi16(ab0, cd0),
                                 _mm512_unpacklo_epi16(ab1, cd1), _mm512_unpackhi_epi16(ab1, cd1)};
        for (int j = 0; j < 4; ++j) {
          low[j] = _mm512_dpbusd_epi32(low[j], taps[j], _mm512_set1_epi32(w[0]));
          middle[j] = _mm512_dpbusd_epi32(middle[j], taps[j], _mm512_set1_epi32(w[1]));
          high[j] = _mm512_dpbusd_epi32(high[j], taps[j], _mm512_set1_epi32(w[2]));
        }
      }
      for (int j = 0; j < 4; ++j) {
        middle[j] = _mm512_add_epi32(middle[j], _mm512_slli_epi32(high[j], 8));
        low[j] = _mm512_add_epi32(low[j], _mm512_slli_epi32(middle[j], 8));
        low[j] = _mm512_srai_epi32(low[j], kImagePrepBits);
      }
      // Packing undoes the order that unpacking made.
      const __m512i levels = _mm512_packus_epi16(_mm512_packus_epi32(low[0], low[1]),
                                                 _mm512_packus_epi32(low[2], low[3]));
      _mm512_storeu_si512(out + i, levels);
    }
  }

 private:
  // Outputs x to x + 3, each from a window of its own.
  static void columns_at(const std::uint8_t* const (&rows)[4], const ImagePrepColumns& table,
                         std::int64_t x, std::uint8_t* const (&out)[4]) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i by_channel =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
    const std::int32_t* w = table.weights + x / 4 * table.groups * 48;
    const std::int32_t* offset = table.offset + x;
    __m512i low[4], middle[4] = {zero, zero, zero, zero}, high[4] = {zero, zero, zero, zero};
    for (__m512i& one : low) one = _mm512_set1_epi32(1 << (kImagePrepBits - 1));
    for (const std::uint8_t* row : rows) __builtin_prefetch(row + offset[0] + table.ahead);
    for (int g = 0; g < table.groups; ++g, w += 48) {
      const __m512i w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + 16),
                    w2 = _mm512_loadu_si512(w + 32);
      for (int r = 0; r < 4; ++r) {
        const std::uint8_t* p = rows[r] + 12 * g;
        const __m512i windows = quarters(load_pixels(p + offset[0]), load_pixels(p + offset[1]),
                                         load_pixels(p + offset[2]), load_pixels(p + offset[3]));
        const __m512i taps = _mm512_shuffle_epi8(windows, by_channel);
        low[r] = _mm512_dpbusd_epi32(low[r], taps, w0);
        middle[r] = _mm512_dpbusd_epi32(middle[r], taps, w1);
        high[r] = _mm512_dpbusd_epi32(high[r], taps, w2);
      }
    }
    store_four(low, middle, high, out, 4 * x);
  }

  // Four outputs of four rows, from the digits of their totals: packed together, then regrouped.
  static void store_four(__m512i (&low)[4], __m512i (&middle)[4], const __m512i (&high)[4],
                         std::uint8_t* const (&out)[4], std::int64_t at) {
    for (int r = 0; r < 4; ++r) {
      middle[r] = _mm512_add_epi32(middle[r], _mm512_slli_epi32(high[r], 8));
      low[r] = _mm512_add_epi32(low[r], _mm512_slli_epi32(middle[r], 8));
      low[r] = _mm512_srai_epi32(low[r], kImagePrepBits);
    }
    const __m512i levels = _mm512_packus_epi16(_mm512_packus_epi32(low[0], low[1]),
                                               _mm512_packus_epi32(low[2], low[3]));
    const __m512i by_row = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i rows = _mm512_permutexvar_epi32(by_row, levels);
    const auto to = [&out, at](int r) { return reinterpret_cast<__m128i*>(out[r] + at); };
    _mm_storeu_si128(to(0), _mm512_castsi512_si128(rows));
    _mm_storeu_si128(to(1), _mm512_extracti32x4_epi32(rows, 1));
    _mm_storeu_si128(to(2), _mm512_extracti32x4_epi32(rows, 2));
    _mm_storeu_si128(to(3), _mm512_extracti32x4_epi32(rows, 3));
  }

  static __m512i quarters(__m128i a, __m128i b, __m128i c, __m128i d) {
    const __m256i ab = _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
    const __m256i cd = _mm256_inserti128_si256(_mm256_castsi128_si256(c), d, 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(ab), cd, 1);
  }
};

}  // namespace
}  // namespace vlakern
