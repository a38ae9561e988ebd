// The inner loop of ode_step for one instruction set; included by one translation unit per ISA.
#pragma once

#include "ode_step/ode_step_update.h"

namespace vlakern {
namespace {

template <class Vec, class X, class V, bool kHasV0, bool kHasMask>
inline void update_lanes(const OdeStepSegment& s, std::int64_t i, int n) {
  const auto x = Vec::load(static_cast<const X*>(s.x) + i, n);
  auto y = x;
  if constexpr (kHasV0) {
    y = Vec::fma(Vec::splat(s.a0), Vec::load(static_cast<const V*>(s.v0) + i, n), y);
  }
  y = Vec::fma(Vec::splat(s.a1), Vec::load(static_cast<const V*>(s.v) + i, n), y);
  if constexpr (kHasMask) y = Vec::select(Vec::nonzero(s.mask + i, n), y, x);
  Vec::store(static_cast<X*>(s.out) + i, y, n);
}

template <class Vec, class X, class V, bool kHasV0, bool kHasMask>
void update(const OdeStepSegment& s) {
  std::int64_t i = 0;
  for (; i + Vec::kLanes <= s.count; i += Vec::kLanes) {
    update_lanes<Vec, X, V, kHasV0, kHasMask>(s, i, Vec::kLanes);
  }
  if (i < s.count) {
    update_lanes<Vec, X, V, kHasV0, kHasMask>(s, i, static_cast<int>(s.count - i));
  }
}

template <class Vec, class X, class V>
OdeStepUpdate pick_flags(bool has_v0, bool has_mask) {
  if (has_v0) return has_mask ? update<Vec, X, V, true, true> : update<Vec, X, V, true, false>;
  return has_mask ? update<Vec, X, V, false, true> : update<Vec, X, V, false, false>;
}

template <class Vec, class X>
OdeStepUpdate pick_velocity(const OdeStepVariant& k) {
  if (k.v == DType::kBF16) return pick_flags<Vec, X, bf16>(k.has_v0, k.has_mask);
  if (k.v == DType::kF16) return pick_flags<Vec, X, f16>(k.has_v0, k.has_mask);
  return pick_flags<Vec, X, float>(k.has_v0, k.has_mask);
}

template <class Vec>
OdeStepUpdate pick_update(const OdeStepVariant& k) {
  if (k.x == DType::kBF16) return pick_velocity<Vec, bf16>(k);
  if (k.x == DType::kF16) return pick_velocity<Vec, f16>(k);
  return pick_velocity<Vec, float>(k);
}

}  // namespace
}  // namespace vlakern
