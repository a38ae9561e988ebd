// The pass along x with vpdpbusd: four rows at a time, four taps of three channels a product.
#pragma once

#include "image_prep/image_prep_columns_avx2.h"

namespace vlakern {
namespace {

struct VnniColumns {
  static constexpr ImagePrepLayout kLayout = ImagePrepLayout::kBytes;

  static void expand(const std::uint8_t* rgb, std::int64_t pixels, std::uint8_t* rgbx) {
    Avx2Columns::expand(rgb, pixels, rgbx);
  }

  static void columns(const std::uint8_t* const (&rows)[4], const ImagePrepColumns& table,
                      std::uint8_t* const (&out)[4]) {
    const __m512i taps =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
    const std::int32_t* w = table.weights;
    for (std::int64_t x = 0; x < table.count; ++x) {
      const std::int64_t at = table.offset[x];
      __m512i low = _mm512_set1_epi32(1 << (kImagePrepBits - 1));
      __m512i middle = _mm512_setzero_si512(), high = middle;
      for (int g = 0; g < table.groups; ++g, w += 3) {
        const std::int64_t i = at + 12 * g;
        const __m256i rows01 = _mm256_inserti128_si256(
            _mm256_castsi128_si256(load_pixels(rows[0] + i)), load_pixels(rows[1] + i), 1);
        const __m256i rows23 = _mm256_inserti128_si256(
            _mm256_castsi128_si256(load_pixels(rows[2] + i)), load_pixels(rows[3] + i), 1);
        const __m512i pixels = _mm512_shuffle_epi8(
            _mm512_inserti64x4(_mm512_castsi256_si512(rows01), rows23, 1), taps);
        low = _mm512_dpbusd_epi32(low, pixels, _mm512_set1_epi32(w[0]));
        middle = _mm512_dpbusd_epi32(middle, pixels, _mm512_set1_epi32(w[1]));
        high = _mm512_dpbusd_epi32(high, pixels, _mm512_set1_epi32(w[2]));
      }
      middle = _mm512_add_epi32(middle, _mm512_slli_epi32(high, 8));
      __m512i level = _mm512_add_epi32(low, _mm512_slli_epi32(middle, 8));
      level = _mm512_max_epi32(_mm512_srai_epi32(level, kImagePrepBits), _mm512_setzero_si512());
      const __m128i four = _mm512_cvtusepi32_epi8(level);
      const int pixels[4] = {_mm_extract_epi32(four, 0), _mm_extract_epi32(four, 1),
                             _mm_extract_epi32(four, 2), _mm_extract_epi32(four, 3)};
      for (int r = 0; r < 4; ++r) std::memcpy(out[r] + 4 * x, &pixels[r], 4);
    }
  }
};

}  // namespace
}  // namespace vlakern
