#include "common/vec_avx512bf16.h"
#include "linear/linear_tiles.h"

namespace vlakern {
namespace {

template <int kRows, int kPanels>
struct Bf16Tile {
  static void run(const LinearTile& t) {
    __m512 sum[kRows][kPanels];
    for (auto& row : sum) {
      for (__m512& one : row) one = _mm512_setzero_ps();
    }
    const auto* x = reinterpret_cast<const std::int32_t*>(t.x);
    const char *w0 = t.w[0], *w1 = t.w[kPanels - 1], *ahead = t.ahead;
    for (std::int64_t s = 0; s < t.steps; ++s, x += kRows, w0 += kLine, w1 += kLine) {
      _mm_prefetch(w0 + kAhead, _MM_HINT_T0);
      if constexpr (kPanels == 2) _mm_prefetch(w1 + kAhead, _MM_HINT_T0);
      _mm_prefetch(ahead + s * kLine, _MM_HINT_T1);
      const auto weights0 = (__m512bh)_mm512_loadu_si512(w0);
      const auto weights1 = (__m512bh)_mm512_loadu_si512(w1);
      for (int r = 0; r < kRows; ++r) {
        const auto values = (__m512bh)_mm512_set1_epi32(x[r]);
        sum[r][0] = _mm512_dpbf16_ps(sum[r][0], weights0, values);
        if constexpr (kPanels == 2) sum[r][1] = _mm512_dpbf16_ps(sum[r][1], weights1, values);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kPanels; ++i) {
        float* at = static_cast<float*>(t.tile) + r * kPair + i * kPanel;
        if (!t.first) sum[r][i] = _mm512_add_ps(_mm512_loadu_ps(at), sum[r][i]);
        _mm512_storeu_ps(at, sum[r][i]);
      }
    }
  }
};

}  // namespace

LinearKernels linear_avx512bf16(const LinearVariant& variant) {
  if (variant.kind == LinearKind::kBF16) {
    return kernels_around<VecAvx512Bf16, bf16, 2>(variant, any_tile<Bf16Tile, 28, 14>, 28, 14);
  }
  return portable_kernels<VecAvx512Bf16, 24>(variant);
}

}  // namespace vlakern
