#include "common/vec_avx2.h"
#include "linear/linear_tiles.h"

namespace vlakern {
namespace {

// Words instead of bytes: maddubs saturates its sums of two products, madd does not.
template <int kRows, int>
struct Int8Tile {
  static void run(const LinearTile& t) {
    constexpr int kVecs = 4;  // of four columns, two partial sums each
    __m256i sum[kRows][kVecs];
    for (auto& row : sum) {
      for (__m256i& one : row) one = _mm256_setzero_si256();
    }
    const char* x = t.x;
    const char* w = t.w;
    for (std::int64_t s = 0; s < t.steps; ++s, x += 4 * kRows, w += kStep) {
      _mm_prefetch(w + kAhead, _MM_HINT_T0);
      __m256i values[kRows];
      for (int r = 0; r < kRows; ++r) {
        std::int32_t four;
        std::memcpy(&four, x + 4 * r, sizeof(four));
        values[r] = _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(four)));
      }
      for (int v = 0; v < kVecs; ++v) {
        const auto* at = reinterpret_cast<const __m128i*>(w + 16 * v);
        const __m256i weights = _mm256_cvtepu8_epi16(_mm_loadu_si128(at));
        for (int r = 0; r < kRows; ++r) {
          sum[r][v] = _mm256_add_epi32(sum[r][v], _mm256_madd_epi16(values[r], weights));
        }
      }
    }
    store(t, sum);
  }

  static void store(const LinearTile& t, const __m256i (&sum)[kRows][4]) {
    for (int r = 0; r < kRows; ++r) {
      std::int32_t* row = static_cast<std::int32_t*>(t.tile) + r * kPair;
      for (int half = 0; half < 2; ++half) {
        // hadd works within 128-bit halves: columns 0 1 4 5 2 3 6 7.
        const __m256i mixed = _mm256_hadd_epi32(sum[r][2 * half], sum[r][2 * half + 1]);
        const __m256i found = _mm256_permute4x64_epi64(mixed, 0xd8);
        auto* at = reinterpret_cast<__m256i*>(row + 8 * half);
        const __m256i before = t.first ? _mm256_set1_epi32(t.start[r]) : _mm256_loadu_si256(at);
        _mm256_storeu_si256(at, _mm256_add_epi32(before, found));
      }
    }
  }
};

}  // namespace

LinearKernels linear_avx2(const LinearVariant& variant) {
  if (variant.kind == LinearKind::kInt8) {
    return kernels_around<VecAvx2, std::int8_t, 4>(variant, any_tile<Int8Tile, 2, 0>, 2, 0);
  }
  return portable_kernels<VecAvx2, 6>(variant);
}

}  // namespace vlakern
