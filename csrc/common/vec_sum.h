// Steps over a run of elements, and sums over it whose order of additions does not depend on the
// instruction set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace vlakern {
namespace {

// step(i, n) over [0, width) in vectors.
template <class Vec, class Step>
inline void each_vector(std::int64_t width, const Step& step) {
  std::int64_t i = 0;
  for (; i + Vec::kLanes <= width; i += Vec::kLanes) step(i, Vec::kLanes);
  if (i < width) step(i, static_cast<int>(width - i));
}

// body(std::integral_constant<int, 0>), ...: arrays indexed by these stay in registers.
template <class Body, int... kIndex>
inline void each_constant(std::integer_sequence<int, kIndex...>, const Body& body) {
  (body(std::integral_constant<int, kIndex>{}), ...);
}

template <int kCount, class Body>
inline void each_constant(const Body& body) {
  each_constant(std::make_integer_sequence<int, kCount>{}, body);
}

template <class Vec, int kWidth, int kSums, int kRows>
inline void halve_sums(typename Vec::Float (&acc)[kRows][kSums]) {
  if constexpr (kWidth > 0) {
    each_constant<kWidth * kSums>([&](auto at) {
      constexpr int j = at / kSums, k = at % kSums;
      acc[j][k] = Vec::add(acc[j][k], acc[j + kWidth][k]);
    });
    halve_sums<Vec, kWidth / 2>(acc);
  }
}

// Sums in one pass. Element i goes into accumulators i % kSpan, and these are added as a halving
// tree: the same bits from every vector width up to kSpan. add(acc, i, n) adds the elements
// [i, i + n) to the leading n lanes of acc[0], acc[1], ... and leaves the others as they are.
template <class Vec, int kSpan, int kSums, class Add>
inline void sum_runs(std::int64_t count, float (&sums)[kSums], const Add& add) {
  constexpr int kAccumulators = kSpan / Vec::kLanes;
  typename Vec::Float acc[kAccumulators][kSums];
  each_constant<kAccumulators * kSums>(
      [&](auto at) { acc[at / kSums][at % kSums] = Vec::splat(0.0f); });
  std::int64_t i = 0;
  for (; i + kSpan <= count; i += kSpan) {
    each_constant<kAccumulators>([&](auto j) { add(acc[j], i + j * Vec::kLanes, Vec::kLanes); });
  }
  each_constant<kAccumulators>([&](auto j) {
    if (i >= count) return;
    add(acc[j], i, static_cast<int>(std::min<std::int64_t>(Vec::kLanes, count - i)));
    i += Vec::kLanes;
  });
  halve_sums<Vec, kAccumulators / 2>(acc);
  each_constant<kSums>([&](auto k) { sums[k] = Vec::sum_lanes(acc[0][k]); });
}

// One of them: add(acc, i, n) returns the new acc.
template <class Vec, int kSpan, class Add>
inline float sum_run(std::int64_t count, const Add& add) {
  float sum[1];
  sum_runs<Vec, kSpan>(count, sum,
                       [&](auto& acc, std::int64_t i, int n) { acc[0] = add(acc[0], i, n); });
  return sum[0];
}

// The leading n lanes of a value, zeros behind them.
template <class Vec>
inline typename Vec::Float leading_lanes(typename Vec::Float value, int n) {
  if (n == Vec::kLanes) return value;
  alignas(64) float lanes[Vec::kLanes] = {};
  Vec::store(lanes, value, n);
  return Vec::load(lanes, Vec::kLanes);
}

}  // namespace
}  // namespace vlakern
