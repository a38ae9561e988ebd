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
};

}  // namespace
}  // namespace vlakern
