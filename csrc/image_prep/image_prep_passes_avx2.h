// The passes with pmaddwd, two taps a product; along x two rows at a time, three channels each.
#pragma once

#include <immintrin.h>

#include "image_prep/image_prep_kernel.h"

namespace vlakern {
namespace {

inline __m128i load_pixels(const std::uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}

struct Avx2Passes {
  static constexpr ImagePrepLayout kLayout = ImagePrepLayout::kPairs;

  static void expand(const std::uint8_t* rgb, std::int64_t pixels, std::uint8_t* rgbx) {
    const __m128i apart = _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1);
    std::int64_t i = 0;
    for (; 3 * i + 16 <= 3 * pixels; i += 4) {
      const __m128i four = _mm_shuffle_epi8(load_pixels(rgb + 3 * i), apart);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(rgbx + 4 * i), four);
    }
    expand_pixels(rgb, i, pixels, rgbx);
  }

  static void columns(const std::uint8_t* const (&rows)[4], const ImagePrepColumns& table,
                      std::uint8_t* const (&out)[4]) {
    two_rows(rows[0], rows[1], table, out[0], out[1]);
    two_rows(rows[2], rows[3], table, out[2], out[3]);
  }

  static void blend(const std::uint8_t* const* rows, const std::int32_t* weights, int groups,
                    std::int64_t bytes, std::uint8_t* out) {
    const __m256i zero = _mm256_setzero_si256();
    for (std::int64_t i = 0; i < bytes; i += 32) {
      __m256i upper[4] = {zero, zero, zero, zero}, lower[4];
      for (__m256i& one : lower) one = _mm256_set1_epi32(1 << (kImagePrepBits - 1));
      const std::int32_t* w = weights;
      for (int k = 0; k < 4 * groups; k += 2, w += 2) {
        const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[k] + i));
        const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[k + 1] + i));
        const __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
        const __m256i pairs[4] = {_mm256_unpacklo_epi8(low, zero), _mm256_unpackhi_epi8(low, zero),
                                  _mm256_unpacklo_epi8(high, zero),
                                  _mm256_unpackhi_epi8(high, zero)};
        const __m256i w0 = _mm256_set1_epi32(w[0]), w1 = _mm256_set1_epi32(w[1]);
        for (int j = 0; j < 4; ++j) {
          upper[j] = _mm256_add_epi32(upper[j], _mm256_madd_epi16(pairs[j], w0));
          lower[j] = _mm256_add_epi32(lower[j], _mm256_madd_epi16(pairs[j], w1));
        }
      }
      for (int j = 0; j < 4; ++j) {
        lower[j] = _mm256_add_epi32(_mm256_slli_epi32(upper[j], 12), lower[j]);
        lower[j] = _mm256_srai_epi32(lower[j], kImagePrepBits);
      }
      // Packing undoes the order that unpacking made.
      const __m256i levels = _mm256_packus_epi16(_mm256_packus_epi32(lower[0], lower[1]),
                                                 _mm256_packus_epi32(lower[2], lower[3]));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), levels);
    }
  }

 private:
  static void two_rows(const std::uint8_t* row0, const std::uint8_t* row1,
                       const ImagePrepColumns& table, std::uint8_t* out0, std::uint8_t* out1) {
    const __m256i taps01 = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m256i taps23 = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
    const std::int32_t* w = table.weights;
    for (std::int64_t x = 0; x < table.count; ++x) {
      const std::uint8_t* p0 = row0 + table.offset[x];
      const std::uint8_t* p1 = row1 + table.offset[x];
      __m256i upper = _mm256_setzero_si256();
      __m256i lower = _mm256_set1_epi32(1 << (kImagePrepBits - 1));
      for (int g = 0; g < table.groups; ++g, w += 4) {
        const __m256i pixels = _mm256_inserti128_si256(
            _mm256_castsi128_si256(load_pixels(p0 + 12 * g)), load_pixels(p1 + 12 * g), 1);
        const __m256i a = _mm256_shuffle_epi8(pixels, taps01);
        const __m256i b = _mm256_shuffle_epi8(pixels, taps23);
        upper = _mm256_add_epi32(upper, _mm256_madd_epi16(a, _mm256_set1_epi32(w[0])));
        lower = _mm256_add_epi32(lower, _mm256_madd_epi16(a, _mm256_set1_epi32(w[1])));
        upper = _mm256_add_epi32(upper, _mm256_madd_epi16(b, _mm256_set1_epi32(w[2])));
        lower = _mm256_add_epi32(lower, _mm256_madd_epi16(b, _mm256_set1_epi32(w[3])));
      }
      __m256i level = _mm256_add_epi32(_mm256_slli_epi32(upper, 12), lower);
      level = _mm256_srai_epi32(level, kImagePrepBits);
      level = _mm256_packus_epi32(level, level);
      level = _mm256_packus_epi16(level, level);
      const int pixel0 = _mm_cvtsi128_si32(_mm256_castsi256_si128(level));
      const int pixel1 = _mm_cvtsi128_si32(_mm256_extracti128_si256(level, 1));
      std::memcpy(out0 + 4 * x, &pixel0, 4);
      std::memcpy(out1 + 4 * x, &pixel1, 4);
    }
  }
};

}  // namespace
}  // namespace vlakern
