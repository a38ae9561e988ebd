#include "common/vec_avx512bf16.h"
#include "linear/linear_tiles.h"

namespace vlakern {
namespace {

template <int kRows, int>
struct Bf16Tile {
  static void run(const LinearTile& t) {
    __m512 sum[kRows][2];
    repeat<kRows>([&](auto r) __attribute__((always_inline)) {
      sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    });
    const auto* x = reinterpret_cast<const std::int32_t*>(t.x);
    const char *w = t.w, *ahead = t.ahead;
    const std::int64_t gap = t.ahead_gap, step = t.ahead_step;
    for (std::int64_t s = 0; s < t.steps; ++s, x += kRows, w += kStep, ahead += step) {
      bring_near<kRows>(ahead, gap);
      const auto weights0 = (__m512bh)_mm512_loadu_si512(w);
      const auto weights1 = (__m512bh)_mm512_loadu_si512(w + kLine);
      repeat<kRows>([&](auto r) __attribute__((always_inline)) {
        const auto values = (__m512bh)_mm512_set1_epi32(x[r]);
        sum[r][0] = _mm512_dpbf16_ps(sum[r][0], weights0, values);
        sum[r][1] = _mm512_dpbf16_ps(sum[r][1], weights1, values);
      });
    }
    auto* tile = static_cast<float*>(t.tile);
    repeat<kRows>([&](auto r) __attribute__((always_inline)) {
      float* at = tile + r * kPair;
      if (!t.first) {
        sum[r][0] = _mm512_add_ps(_mm512_loadu_ps(at), sum[r][0]);
        sum[r][1] = _mm512_add_ps(_mm512_loadu_ps(at + kPanel), sum[r][1]);
      }
      _mm512_storeu_ps(at, sum[r][0]);
      _mm512_storeu_ps(at + kPanel, sum[r][1]);
    });
  }
};

std::int64_t busy_bf16(std::int64_t turns) {
  __m512 sum[kBusySums];
  for (__m512& one : sum) one = _mm512_setzero_ps();
  const auto factor = (__m512bh)_mm512_set1_epi32(static_cast<int>(turns));
  for (std::int64_t i = 0; i < turns; ++i) {
    for (__m512& one : sum) one = _mm512_dpbf16_ps(one, factor, factor);
  }
  for (int i = 1; i < kBusySums; ++i) sum[0] = _mm512_add_ps(sum[0], sum[i]);
  volatile float sink = _mm512_reduce_add_ps(sum[0]);
  static_cast<void>(sink);
  return turns * kBusySums * 64;
}

}  // namespace

LinearKernels linear_avx512bf16(const LinearVariant& variant) {
  LinearKernels kernels =
      kernels_around<VecAvx512Bf16, bf16, 2>(variant, any_tile<Bf16Tile, 0, 14>, 0, 14);
  kernels.busy = busy_bf16;
  return kernels;
}

}  // namespace vlakern
