// Packing of x and the epilogue for one instruction set; included by one translation unit per ISA.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "common/number.h"
#include "common/vec_math.h"
#include "linear/linear_tile.h"

namespace vlakern {
namespace {

constexpr int kPiece = 128;  // values of a row on their way

template <class T>
T least(T a, T b) {
  return b < a ? b : a;
}

template <class Vec, class X, class Y>
void convert(const X* from, Y* to, int count) {
  int i = 0;
  for (; i + Vec::kLanes <= count; i += Vec::kLanes) {
    Vec::store(to + i, Vec::load(from + i, Vec::kLanes), Vec::kLanes);
  }
  if (i < count) Vec::store(to + i, Vec::load(from + i, count - i), count - i);
}

// One row's values of a piece as the kernels multiply them; what K does not fill is 0.
template <class Vec, class X>
void read_values(const LinearPack&, int, const X* from, int count, float* to) {
  convert<Vec>(from, to, count);
}

template <class Vec>
void read_values(const LinearPack&, int, const bf16* from, int count, bf16* to) {
  std::memcpy(to, from, sizeof(bf16) * static_cast<std::size_t>(count));
}

template <class Vec>
void read_values(const LinearPack&, int, const float* from, int count, bf16* to) {
  convert<Vec>(from, to, count);
}

template <class Vec, class X>
void read_values(const LinearPack& p, int row, const X* from, int count, std::int8_t* to) {
  alignas(64) float values[kPiece];
  const auto inverse = Vec::splat(p.inverse[row]);
  std::int32_t sum = 0;
  int i = 0;
  for (; i + Vec::kLanes <= count; i += Vec::kLanes) {
    const auto scaled = Vec::mul(Vec::load(from + i, Vec::kLanes), inverse);
    Vec::store(values + i, Vec::round(scaled), Vec::kLanes);
  }
  for (; i < count; ++i) values[i] = std::nearbyint(to_float(from[i]) * p.inverse[row]);
  for (i = 0; i < count; ++i) {
    // Not a number is no integer; the row's scale says that it was one.
    const float value = values[i] >= -127.0f && values[i] <= 127.0f ? values[i] : 0.0f;
    to[i] = static_cast<std::int8_t>(static_cast<std::int32_t>(value));
    sum += to[i];
  }
  __atomic_fetch_add(p.start + row, -128 * sum, __ATOMIC_RELAXED);
}

// kValues of type T side by side per step; kWide stores bf16 as the fp32 that they are. A piece of
// all rows is converted before it is rearranged, so that both run along memory.
template <class Vec, class X, class T, int kValues, bool kWide = false>
void pack_rows(const LinearPack& p) {
  using Stored = std::conditional_t<kWide, float, T>;
  struct Step {
    Stored values[kValues];
  };
  constexpr std::int64_t kSteps = kPiece / kValues;
  alignas(64) T values[kMostRows][kPiece];
  alignas(64) Stored wide[kMostRows][kWide ? kPiece : 1];
  auto* to = reinterpret_cast<Step*>(p.packed);
  for (std::int64_t s0 = 0; s0 < p.steps; s0 += kSteps) {
    const std::int64_t steps = least(kSteps, p.steps - s0), k0 = (p.step0 + s0) * kValues;
    const int count = static_cast<int>(least(steps * kValues, p.k - k0));
    const Step* from[kMostRows];
    for (int r = 0; r < p.rows; ++r) {
      T* row = values[r];
      read_values<Vec>(p, r, static_cast<const X*>(p.x) + r * p.x_stride + k0, count, row);
      std::memset(row + count, 0, sizeof(T) * static_cast<std::size_t>(steps * kValues - count));
      if constexpr (kWide) {
        convert<Vec>(row, wide[r], static_cast<int>(steps) * kValues);
        from[r] = reinterpret_cast<const Step*>(wide[r]);
      } else {
        from[r] = reinterpret_cast<const Step*>(row);
      }
    }
    for (std::int64_t s = 0; s < steps; ++s) {
      for (int r = 0; r < p.rows; ++r, ++to) std::memcpy(to, from[r] + s, sizeof(Step));
    }
  }
}

template <class Vec, class X>
float largest(const void* x, std::int64_t k, float* taint) {
  constexpr int kChains = 4;
  using Float = typename Vec::Float;
  const X* values = static_cast<const X*>(x);
  const Float zero = Vec::splat(0.0f);
  Float most = zero, lost = zero, mosts[kChains], losts[kChains];
  for (int c = 0; c < kChains; ++c) mosts[c] = losts[c] = zero;
  std::int64_t i = 0;
  for (; i + kChains * Vec::kLanes <= k; i += kChains * Vec::kLanes) {
    for (int c = 0; c < kChains; ++c) {
      const Float value = Vec::load(values + i + c * Vec::kLanes, Vec::kLanes);
      mosts[c] = Vec::max(Vec::abs(value), mosts[c]);
      losts[c] = Vec::fma(value, zero, losts[c]);
    }
  }
  for (int c = 0; c < kChains; ++c) {
    most = Vec::max(mosts[c], most);
    lost = Vec::add(losts[c], lost);
  }
  for (; i < k; i += Vec::kLanes) {
    const int n = static_cast<int>(least<std::int64_t>(Vec::kLanes, k - i));
    const Float value = Vec::load(values + i, n);
    most = Vec::max(Vec::abs(value), most);
    lost = Vec::fma(value, zero, lost);
  }
  float lanes[Vec::kLanes], gone[Vec::kLanes];
  Vec::store(lanes, most, Vec::kLanes);
  Vec::store(gone, lost, Vec::kLanes);
  float found = 0;
  *taint = 0;
  for (int i = 0; i < Vec::kLanes; ++i) {
    found = lanes[i] > found ? lanes[i] : found;
    *taint += gone[i];
  }
  return found;
}

template <class Vec, Activation kActivation>
typename Vec::Float activate(typename Vec::Float z) {
  if constexpr (kActivation == Activation::kSilu) {
    return vec_silu<Vec>(z);
  } else if constexpr (kActivation == Activation::kGeluErf) {
    return vec_gelu_erf<Vec>(z);
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    return vec_gelu_tanh<Vec>(z);
  } else {
    return Vec::max(Vec::splat(0.0f), z);
  }
}

// row_scale * (x W^T) + bias of some lanes of a row.
template <class Vec, bool kInt>
void scale_lanes(const LinearFinish& f, int row, int lane, const float* bias, int n) {
  const int at = row * kPair + lane;
  typename Vec::Float z;
  if constexpr (kInt) {
    z = Vec::from_ints(static_cast<const std::int32_t*>(f.tile) + at);
    z = Vec::mul(Vec::mul(z, Vec::splat(f.x_scale[row])), Vec::load(f.w_scale + lane, Vec::kLanes));
  } else {
    z = Vec::load(static_cast<const float*>(f.tile) + at, Vec::kLanes);
  }
  if (f.row_scale != nullptr) z = Vec::mul(z, Vec::splat(f.row_scale[row * f.row_scale_stride]));
  if (bias != nullptr) z = Vec::add(z, Vec::load(bias, n));
  Vec::store(f.z + at, z, Vec::kLanes);
}

template <class Vec, bool kInt>
void scale_tile(const LinearFinish& f) {
  for (int r = 0; r < f.rows; ++r) {
    for (int c = 0; c < f.columns; c += Vec::kLanes) {
      const int n = least<int>(Vec::kLanes, f.columns - c);
      scale_lanes<Vec, kInt>(f, r, c, f.bias == nullptr ? nullptr : f.bias + c, n);
      if (!f.gated) continue;
      const float* bias = f.up_bias == nullptr ? nullptr : f.up_bias + c;
      scale_lanes<Vec, kInt>(f, r, kPanel + c, bias, n);
    }
  }
}

template <class Vec, Activation kActivation>
void activate_tile(const LinearFinish& f) {
  for (int r = 0; r < f.rows; ++r) {
    for (int c = 0; c < f.columns; c += Vec::kLanes) {
      float* z = f.z + r * kPair + c;
      auto y = activate<Vec, kActivation>(Vec::load(z, Vec::kLanes));
      if (f.gated) y = Vec::mul(y, Vec::load(z + kPanel, Vec::kLanes));
      Vec::store(z, y, Vec::kLanes);
    }
  }
}

template <class Vec, class Out>
void store_tile(const LinearFinish& f) {
  for (int r = 0; r < f.rows; ++r) {
    for (int c = 0; c < f.columns; c += Vec::kLanes) {
      const int n = least<int>(Vec::kLanes, f.columns - c);
      auto y = Vec::load(f.z + r * kPair + c, Vec::kLanes);
      if (f.residual != nullptr) {
        const Out* residual = static_cast<const Out*>(f.residual) + r * f.residual_stride + c;
        y = Vec::add(y, Vec::load(residual, n));
      }
      Vec::store(static_cast<Out*>(f.out) + r * f.out_stride + c, y, n);
    }
  }
}

using FinishFunction = void (*)(const LinearFinish&);

template <class Vec>
FinishFunction pick_activation(Activation a) {
  using A = Activation;
  switch (a) {
    case A::kSilu:
    case A::kSiluGate:
      return activate_tile<Vec, A::kSilu>;
    case A::kGeluErf:
      return activate_tile<Vec, A::kGeluErf>;
    case A::kGeluTanh:
    case A::kGeluTanhGate:
      return activate_tile<Vec, A::kGeluTanh>;
    case A::kRelu:
      return activate_tile<Vec, A::kRelu>;
    default:
      return nullptr;
  }
}

// What does not depend on how the tile is multiplied, for one element type of the weights.
template <class Vec, class T, int kValues, bool kWide = false>
LinearKernels kernels_around(const LinearVariant& v, void (*tile)(const LinearTile&), int rows_one,
                             int rows_two) {
  const bool narrow = v.x == DType::kBF16;
  LinearKernels k{};
  k.rows_one = rows_one;
  k.rows_two = rows_two;
  k.x_size = kValues * static_cast<int>(kWide ? sizeof(float) : sizeof(T));
  k.tile = tile;
  k.pack =
      narrow ? pack_rows<Vec, bf16, T, kValues, kWide> : pack_rows<Vec, float, T, kValues, kWide>;
  k.scale = scale_tile<Vec, std::is_same_v<T, std::int8_t>>;
  k.activate = pick_activation<Vec>(v.activation);
  k.store = v.out == DType::kBF16 ? store_tile<Vec, bf16> : store_tile<Vec, float>;
  k.largest = narrow ? largest<Vec, bf16> : largest<Vec, float>;
  return k;
}

}  // namespace
}  // namespace vlakern
