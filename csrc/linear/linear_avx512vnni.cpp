#include "common/vec_avx512.h"
#include "linear/linear_tiles.h"

namespace vlakern {
namespace {

template <int kRows, int>
struct Int8Tile {
  static void run(const LinearTile& t) {
    __m512i sum[kRows][2];
    auto* tile = static_cast<std::int32_t*>(t.tile);
    repeat<kRows>([&](auto r) __attribute__((always_inline)) {
      const __m512i start = _mm512_set1_epi32(t.start[r]);
      sum[r][0] = t.first ? start : _mm512_loadu_si512(tile + r * kPair);
      sum[r][1] = t.first ? start : _mm512_loadu_si512(tile + r * kPair + kPanel);
    });
    const auto* x = reinterpret_cast<const std::int32_t*>(t.x);
    const char *w = t.w, *ahead = t.ahead;
    const std::int64_t gap = t.ahead_gap, step = t.ahead_step;
    for (std::int64_t s = 0; s < t.steps; ++s, x += kRows, w += kStep, ahead += step) {
      bring_near<kRows>(ahead, gap);
      const __m512i weights0 = _mm512_loadu_si512(w);
      const __m512i weights1 = _mm512_loadu_si512(w + kLine);
      repeat<kRows>([&](auto r) __attribute__((always_inline)) {
        const __m512i values = _mm512_set1_epi32(x[r]);
        sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], weights0, values);
        sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], weights1, values);
      });
    }
    repeat<kRows>([&](auto r) __attribute__((always_inline)) {
      _mm512_storeu_si512(tile + r * kPair, sum[r][0]);
      _mm512_storeu_si512(tile + r * kPair + kPanel, sum[r][1]);
    });
  }
};

std::int64_t busy_int8(std::int64_t turns) {
  __m512i sum[kBusySums];
  for (__m512i& one : sum) one = _mm512_setzero_si512();
  const __m512i factor = _mm512_set1_epi32(static_cast<int>(turns));
  for (std::int64_t i = 0; i < turns; ++i) {
    for (__m512i& one : sum) one = _mm512_dpbusd_epi32(one, factor, factor);
  }
  for (int i = 1; i < kBusySums; ++i) sum[0] = _mm512_add_epi32(sum[0], sum[i]);
  volatile int sink = _mm512_reduce_add_epi32(sum[0]);
  static_cast<void>(sink);
  return turns * kBusySums * 128;
}

}  // namespace

LinearKernels linear_avx512vnni(const LinearVariant& variant) {
  LinearKernels kernels =
      kernels_around<VecAvx512, std::int8_t, 4>(variant, any_tile<Int8Tile, 0, 14>, 0, 14);
  kernels.busy = busy_int8;
  return kernels;
}

}  // namespace vlakern
