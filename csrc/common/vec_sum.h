// Steps over a run of elements, and sums over it whose order of additions does not depend on the
// instruction set.
#pragma once

#include <algorithm>
#include <cstdint>

namespace vlakern {
namespace {

// step(i, n) over [0, width) in vectors.
template <class Vec, class Step>
inline void each_vector(std::int64_t width, const Step& step) {
  std::int64_t i = 0;
  for (; i + Vec::kLanes <= width; i += Vec::kLanes) step(i, Vec::kLanes);
  if (i < width) step(i, static_cast<int>(width - i));
}

// Element i goes into accumulator i % kSpan, and the accumulators are added as a halving tree: the
// same bits from every vector width up to kSpan. add(acc, i, n) adds the elements [i, i + n) to the
// leading n lanes and leaves the others as they are.
template <class Vec, int kSpan, class Add>
inline float sum_run(std::int64_t count, const Add& add) {
  constexpr int kAccumulators = kSpan / Vec::kLanes;
  typename Vec::Float acc[kAccumulators];
  for (auto& one : acc) one = Vec::splat(0.0f);
  std::int64_t i = 0;
  for (; i + kSpan <= count; i += kSpan) {
    for (int j = 0; j < kAccumulators; ++j) {
      acc[j] = add(acc[j], i + j * Vec::kLanes, Vec::kLanes);
    }
  }
  for (int j = 0; j < kAccumulators && i < count; ++j, i += Vec::kLanes) {
    acc[j] = add(acc[j], i, static_cast<int>(std::min<std::int64_t>(Vec::kLanes, count - i)));
  }
  for (int width = kAccumulators / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) acc[j] = Vec::add(acc[j], acc[j + width]);
  }
  return Vec::sum_lanes(acc[0]);
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
