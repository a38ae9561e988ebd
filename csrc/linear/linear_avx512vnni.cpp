#include "common/vec_avx512.h"
#include "linear/linear_tiles.h"

namespace vlakern {
namespace {

template <int kRows, int kPanels>
struct Int8Tile {
  static void run(const LinearTile& t) {
    __m512i sum[kRows][kPanels];
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kPanels; ++i) {
        const auto* at = static_cast<const std::int32_t*>(t.tile) + r * kPair + i * kPanel;
        sum[r][i] = t.first ? _mm512_set1_epi32(t.start[r]) : _mm512_loadu_si512(at);
      }
    }
    const auto* x = reinterpret_cast<const std::int32_t*>(t.x);
    const char *w0 = t.w[0], *w1 = t.w[kPanels - 1], *ahead = t.ahead;
    for (std::int64_t s = 0; s < t.steps; ++s, x += kRows, w0 += kLine, w1 += kLine) {
      _mm_prefetch(w0 + kAhead, _MM_HINT_T0);
      if constexpr (kPanels == 2) _mm_prefetch(w1 + kAhead, _MM_HINT_T0);
      _mm_prefetch(ahead + s * kLine, _MM_HINT_T1);
      const __m512i weights0 = _mm512_loadu_si512(w0);
      const __m512i weights1 = _mm512_loadu_si512(w1);
      for (int r = 0; r < kRows; ++r) {
        const __m512i values = _mm512_set1_epi32(x[r]);
        sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], weights0, values);
        if constexpr (kPanels == 2) sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], weights1, values);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kPanels; ++i) {
        auto* at = static_cast<std::int32_t*>(t.tile) + r * kPair + i * kPanel;
        _mm512_storeu_si512(at, sum[r][i]);
      }
    }
  }
};

}  // namespace

LinearKernels linear_avx512vnni(const LinearVariant& variant) {
  return kernels_around<VecAvx512, std::int8_t, 4>(variant, any_tile<Int8Tile, 28, 14>, 28, 14);
}

}  // namespace vlakern
