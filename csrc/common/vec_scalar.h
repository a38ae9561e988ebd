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
  using Bits = std::uint32_t;

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

  // Lanes as unsigned 32-bit integers, modulo 2^32.
  static Bits bits_splat(std::uint32_t value) { return value; }
  static Bits bits_iota() { return 0; }
  static Bits bits_add(Bits a, Bits b) { return a + b; }
  static Bits bits_and(Bits a, Bits b) { return a & b; }
  static Bits bits_xor(Bits a, Bits b) { return a ^ b; }
  template <int kCount>
  static Bits bits_left(Bits a) {
    return a << kCount;
  }
  template <int kCount>
  static Bits bits_right(Bits a) {
    return a >> kCount;
  }
  static void bits_product(Bits a, Bits b, Bits* high, Bits* low) {
    const std::uint64_t product = std::uint64_t{a} * b;
    *high = static_cast<Bits>(product >> 32);
    *low = static_cast<Bits>(product);
  }
  static constexpr bool kHalves = false;
  static Bits bits_of_float(Float a) { return bits_of(a); }
  static Float float_of_bits(Bits a) { return float_of(a); }
  static Float from_signed(Bits a) { return static_cast<float>(static_cast<std::int32_t>(a)); }
  static Float sqrt(Float a) { return std::sqrt(a); }
  // sums[lane] += a.
  static void accumulate(double* sums, Float a) { *sums += static_cast<double>(a); }

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
