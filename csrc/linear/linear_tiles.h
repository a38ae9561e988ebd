// Tiles by number of rows, and the portable ones; included by one translation unit per ISA.
#pragma once

#include <utility>

#include "linear/linear_finish.h"

namespace vlakern {
namespace {

constexpr std::int64_t kAhead = 16 * kLine;  // what portable kernels bring into the first cache

// Calls body(0), ..., body(kCount - 1) with the number as a type: indices that are constants from
// the start let the compiler keep arrays in registers.
template <class Body, int... kIndex>
[[gnu::always_inline]] inline void repeat(const Body& body, std::integer_sequence<int, kIndex...>) {
  (body(std::integral_constant<int, kIndex>()), ...);
}

template <int kCount, class Body>
[[gnu::always_inline]] inline void repeat(const Body& body) {
  repeat(body, std::make_integer_sequence<int, kCount>());
}

using TileFunction = void (*)(const LinearTile&);

template <template <int, int> class Tile, int kPanels, int... kRows>
void run_tile(const LinearTile& t, std::integer_sequence<int, kRows...>) {
  static constexpr TileFunction kTable[] = {Tile<kRows + 1, kPanels>::run...};
  kTable[t.rows - 1](t);
}

// Tile<rows, panels>::run for the tile at hand.
template <template <int, int> class Tile, int kRowsOne, int kRowsTwo>
void any_tile(const LinearTile& t) {
  if constexpr (kRowsTwo > 0) {
    run_tile<Tile, 2>(t, std::make_integer_sequence<int, kRowsTwo>());
  } else {
    run_tile<Tile, 1>(t, std::make_integer_sequence<int, kRowsOne>());
  }
}

// Below this many rows the processor's own prefetching keeps up, and more only disturbs it.
constexpr int kRowsToBringNear = 5;

template <int kRows>
[[gnu::always_inline]] inline void bring_near(const char* ahead, std::int64_t gap) {
  if constexpr (kRows >= kRowsToBringNear) {
    __builtin_prefetch(ahead, 0, 2);
    __builtin_prefetch(ahead + gap, 0, 2);
  }
}

template <class Vec>
struct PortableF32 {
  using X = float;
  static constexpr int kValues = 1;
  using Float = typename Vec::Float;

  static void load(const char* w, int v, Float (&values)[1]) {
    values[0] = Vec::load(reinterpret_cast<const float*>(w) + v * Vec::kLanes, Vec::kLanes);
  }
};

template <class Vec>
struct PortableBf16 {
  using X = float;
  static constexpr int kValues = 2;
  using Float = typename Vec::Float;

  static void load(const char* w, int v, Float (&values)[2]) {
    Vec::load_pairs(reinterpret_cast<const bf16*>(w) + 2 * v * Vec::kLanes, values[0], values[1]);
  }
};

// Multiplications in fp32, K in order.
template <class Vec, class Weights>
struct Portable {
  template <int kRows, int>
  struct Tile {
    static void run(const LinearTile& t) {
      constexpr int kVecs = kPanel / Vec::kLanes, kValues = Weights::kValues;
      using Float = typename Vec::Float;
      Float sum[kRows][kVecs];
      repeat<kRows * kVecs>([&](auto i) { sum[i / kVecs][i % kVecs] = Vec::splat(0.0f); });
      const auto* x = reinterpret_cast<const float*>(t.x);
      const char* w = t.w;
      for (std::int64_t s = 0; s < t.steps; ++s, x += kRows * kValues, w += kStep) {
        __builtin_prefetch(w + kAhead);
        Float weights[kVecs][kValues];
        repeat<kVecs>([&](auto v) { Weights::load(w, v, weights[v]); });
        repeat<kValues * kRows>([&](auto i) {
          constexpr int kValue = i / kRows, kRow = i % kRows;
          const Float value = Vec::splat(x[kRow * kValues + kValue]);
          repeat<kVecs>(
              [&](auto v) { sum[kRow][v] = Vec::fma(value, weights[v][kValue], sum[kRow][v]); });
        });
      }
      float* tile = static_cast<float*>(t.tile);
      repeat<kRows * kVecs>([&](auto i) {
        constexpr int kRow = i / kVecs, kVec = i % kVecs;
        float* at = tile + kRow * kPair + kVec * Vec::kLanes;
        Float total = sum[kRow][kVec];
        if (!t.first) total = Vec::add(Vec::load(at, Vec::kLanes), total);
        Vec::store(at, total, Vec::kLanes);
      });
    }
  };
};

// Bytes multiplied one by one, for instruction sets without more.
struct PortableInt8 {
  template <int kRows, int>
  struct Tile {
    static void run(const LinearTile& t) {
      auto* tile = static_cast<std::int32_t*>(t.tile);
      for (int r = 0; r < kRows; ++r) {
        std::int32_t sum[kPanel];
        for (int c = 0; c < kPanel; ++c) sum[c] = t.first ? t.start[r] : tile[r * kPair + c];
        const auto* x = reinterpret_cast<const std::int8_t*>(t.x) + 4 * r;
        const auto* w = reinterpret_cast<const std::uint8_t*>(t.w);
        for (std::int64_t s = 0; s < t.steps; ++s, x += 4 * kRows, w += kStep) {
          for (int c = 0; c < kPanel; ++c) {
            for (int i = 0; i < 4; ++i) sum[c] += x[i] * w[4 * c + i];
          }
        }
        for (int c = 0; c < kPanel; ++c) tile[r * kPair + c] = sum[c];
      }
    }
  };
};

// Twelve sums that do not wait for each other: more than latency times throughput anywhere.
constexpr int kBusySums = 12;

template <class Vec>
std::int64_t busy_fma(std::int64_t turns) {
  typename Vec::Float sum[kBusySums];
  for (auto& one : sum) one = Vec::splat(0.0f);
  const auto factor = Vec::splat(static_cast<float>(turns));
  for (std::int64_t i = 0; i < turns; ++i) {
    for (auto& one : sum) one = Vec::fma(factor, factor, one);
  }
  volatile float sink[Vec::kLanes];
  for (auto& one : sum) {
    float lanes[Vec::kLanes];
    Vec::store(lanes, one, Vec::kLanes);
    for (int i = 0; i < Vec::kLanes; ++i) sink[i] = lanes[i];
  }
  static_cast<void>(sink[0]);
  return turns * kBusySums * Vec::kLanes * 2;
}

template <class Vec>
LinearKernels with_busy_fma(LinearKernels kernels) {
  kernels.busy = busy_fma<Vec>;
  return kernels;
}

// Kernels that need nothing but Vec; kRows is what its registers hold. With kBytes int8's, too.
template <class Vec, int kRows, bool kBytes = false>
LinearKernels portable_kernels(const LinearVariant& v) {
  if constexpr (kBytes) {
    if (v.kind == LinearKind::kInt8) {
      return kernels_around<Vec, std::int8_t, 4>(v, any_tile<PortableInt8::Tile, 4, 0>, 4, 0);
    }
  }
  if (v.kind == LinearKind::kF32) {
    return with_busy_fma<Vec>(kernels_around<Vec, float, 1>(
        v, any_tile<Portable<Vec, PortableF32<Vec>>::template Tile, kRows, 0>, kRows, 0));
  }
  return with_busy_fma<Vec>(kernels_around<Vec, bf16, 2, true>(
      v, any_tile<Portable<Vec, PortableBf16<Vec>>::template Tile, kRows, 0>, kRows, 0));
}

}  // namespace
}  // namespace vlakern
