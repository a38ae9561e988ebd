// One lane of plain C++: the definition that the vector headers reproduce bit by bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/number.h"

namespace vlakern {
namespace {

struct VecScalar {
  static constexpr int kLanes = 1;
  using Float = float;
  using Mask = bool;

  template <class T>
  static Float load(const T* p, int) {
    return to_float(*p);
  }
  template <class T>
  static void store(T* p, Float value, int) {
    *p = from_float<T>(value);
  }
  static Mask nonzero(const std::uint8_t* p, int) { return *p != 0; }
  static Float splat(float value) { return value; }
  static Float fma(Float a, Float b, Float c) { return std::fma(a, b, c); }
  static Float select(Mask mask, Float yes, Float no) { return mask ? yes : no; }

  static Float from_ints(const std::int32_t* p) { return static_cast<float>(*p); }
  // Pairs of bfloat16: the first of each, and the second.
  static void load_pairs(const bf16* p, Float& first, Float& second) {
    first = to_float(p[0]);
    second = to_float(p[1]);
  }
  static Float add(Float a, Float b) { return a + b; }
  static Float sub(Float a, Float b) { return a - b; }
  static Float mul(Float a, Float b) { return a * b; }
  static float sum_lanes(Float a) { return a; }
  static Float div(Float a, Float b) { return a / b; }
  // A NaN in b is kept.
  static Float max(Float a, Float b) { return a > b ? a : b; }
  static Float min(Float a, Float b) { return a < b ? a : b; }
  static Float abs(Float a) { return std::fabs(a); }
  static Mask less(Float a, Float b) { return a < b; }
  static Float round(Float a) { return std::nearbyint(a); }  // halves to even
  // 2^n for an integral n of [-126, 127].
  static Float pow2(Float n) {
    return float_of(static_cast<std::uint32_t>(static_cast<int>(n) + 127) << 23);
  }
};

}  // namespace
}  // namespace vlakern
