// The arithmetic of norm on one row, for one instruction set.
#pragma once

#include <cmath>

#include "common/number.h"
#include "common/vec_sum.h"
#include "norm/norm_row.h"

namespace vlakern {
namespace {

constexpr int kNormSpan = 64;

struct RowMoments {
  float mean;
  float r;  // 1 / sqrt(mean square or variance + eps)
};

// One rounding in place of four: every element of the row inherits them.
inline float reciprocal_root(float square, std::int64_t width, float eps) {
  const double variance = static_cast<double>(square) / static_cast<double>(width);
  return static_cast<float>(1.0 / std::sqrt(variance + static_cast<double>(eps)));
}

template <class Vec, class X>
inline float row_mean(const X* h, std::int64_t width) {
  const float sum =
      sum_run<Vec, kNormSpan>(width, [&](typename Vec::Float acc, std::int64_t i, int n) {
        return Vec::add(acc, Vec::load(h + i, n));
      });
  return sum / static_cast<float>(width);
}

template <class Vec, class X>
inline RowMoments centered_moments(const X* h, std::int64_t width, float eps, float mean) {
  using Float = typename Vec::Float;
  const Float center = Vec::splat(mean);
  const float square = sum_run<Vec, kNormSpan>(width, [&](Float acc, std::int64_t i, int n) {
    const Float v = leading_lanes<Vec>(Vec::sub(Vec::load(h + i, n), center), n);
    return Vec::fma(v, v, acc);
  });
  return {mean, reciprocal_root(square, width, eps)};
}

template <class Vec, class X, bool kLayer>
inline RowMoments row_moments(const X* h, std::int64_t width, float eps) {
  if constexpr (kLayer) return centered_moments<Vec>(h, width, eps, row_mean<Vec>(h, width));
  const float square =
      sum_run<Vec, kNormSpan>(width, [&](typename Vec::Float acc, std::int64_t i, int n) {
        const auto v = Vec::load(h + i, n);
        return Vec::fma(v, v, acc);
      });
  return {0.0f, reciprocal_root(square, width, eps)};
}

// n = (h - mean) * r
template <class Vec, bool kLayer>
inline typename Vec::Float normalised(typename Vec::Float h, typename Vec::Float mean,
                                      typename Vec::Float r) {
  if constexpr (kLayer) h = Vec::sub(h, mean);
  return Vec::mul(h, r);
}

// A row ends with its page or soon after, where the hardware stops to fetch ahead.
template <class Vec, class T>
inline void fetch(const T* row, std::int64_t i) {
  if constexpr (Vec::kLanes > 1) __builtin_prefetch(row + i, 0, 2);
}

// h = x + gate * residual, and the moments of what it was rounded to.
template <class Vec, class X, class Residual, bool kLayer>
inline RowMoments add_residual(NormRow s) {
  using Float = typename Vec::Float;
  const auto* x = static_cast<const X*>(s.x);
  const auto* residual = static_cast<const Residual*>(s.residual);
  auto* h = static_cast<X*>(s.h);
  const float sum = sum_run<Vec, kNormSpan>(s.width, [&](Float acc, std::int64_t i, int n) {
    const Float a = Vec::load(x + i, n), b = Vec::load(residual + i, n);
    Vec::store(h + i, s.gate == nullptr ? Vec::add(a, b) : Vec::fma(Vec::load(s.gate + i, n), b, a),
               n);
    const Float v = Vec::load(h + i, n);
    return kLayer ? Vec::add(acc, v) : Vec::fma(v, v, acc);
  });
  if constexpr (kLayer)
    return centered_moments<Vec>(h, s.width, s.eps, sum / static_cast<float>(s.width));
  return {0.0f, reciprocal_root(sum, s.width, s.eps)};
}

template <class Vec, class X, class Residual, bool kLayer>
void norm_forward(const NormRow& row) {
  using Float = typename Vec::Float;
  const NormRow s = row;  // a copy, since no store can change that
  const auto* h = static_cast<const X*>(s.residual == nullptr ? s.x : s.h);
  const RowMoments moments = s.residual == nullptr ? row_moments<Vec, X, kLayer>(h, s.width, s.eps)
                                                   : add_residual<Vec, X, Residual, kLayer>(s);
  const auto mean = Vec::splat(moments.mean), r = Vec::splat(moments.r);
  auto* y = static_cast<X*>(s.y);
  const auto write = [&](const auto& modulated) {
    each_vector<Vec>(s.width, [&](std::int64_t i, int n) {
      fetch<Vec>(static_cast<const X*>(s.next_x), i);
      if (s.residual != nullptr) fetch<Vec>(static_cast<const Residual*>(s.next_residual), i);
      const Float normal = normalised<Vec, kLayer>(Vec::load(h + i, n), mean, r);
      Vec::store(y + i, modulated(normal, i, n), n);
    });
  };
  if (s.a == nullptr && s.c == nullptr) {
    write([](Float normal, std::int64_t, int) { return normal; });
  } else if (s.c == nullptr) {
    write([&](Float normal, std::int64_t i, int n) {
      return Vec::mul(normal, Vec::load(s.a + i, n));
    });
  } else if (s.a == nullptr) {
    write([&](Float normal, std::int64_t i, int n) {
      return Vec::add(normal, Vec::load(s.c + i, n));
    });
  } else {
    write([&](Float normal, std::int64_t i, int n) {
      return Vec::fma(normal, Vec::load(s.a + i, n), Vec::load(s.c + i, n));
    });
  }
}

// What one row of the backward pass knows before its gradient is written.
struct BackMoments {
  float mean, r, down, level;  // down = -mean(u * n), level = mean(u)
};

template <class Vec, class X, bool kLayer>
inline BackMoments back_moments(NormBackRow s) {
  using Float = typename Vec::Float;
  const auto* dy = static_cast<const X*>(s.dy);
  const auto* h = static_cast<const X*>(s.h);
  const auto count = static_cast<float>(s.width);
  const float mean = kLayer ? row_mean<Vec>(h, s.width) : 0.0f;
  const Float center = Vec::splat(mean);
  float sums[kLayer ? 3 : 2];
  sum_runs<Vec, kNormSpan>(s.width, sums, [&](auto& acc, std::int64_t i, int n) {
    Float v = Vec::load(h + i, n), u = Vec::load(dy + i, n);
    if (s.a != nullptr) u = Vec::mul(u, Vec::load(s.a + i, n));
    if constexpr (kLayer) v = leading_lanes<Vec>(Vec::sub(v, center), n);
    acc[0] = Vec::fma(v, v, acc[0]);
    acc[1] = Vec::fma(u, v, acc[1]);
    if constexpr (kLayer) acc[2] = Vec::add(acc[2], u);
  });
  const float r = reciprocal_root(sums[0], s.width, s.eps);
  float level = 0.0f;
  if constexpr (kLayer) level = sums[2] / count;
  return {mean, r, -(sums[1] * r) / count, level};
}

// dx = dh + r * (u - n * mean(u * n) - mean(u)) with u = dy * a, the last term for LayerNorm alone.
template <class Vec, class X, class Residual, bool kLayer>
void norm_backward(const NormBackRow& row) {
  using Float = typename Vec::Float;
  const NormBackRow s = row;  // a copy, since no store can change that
  const auto* next_h = static_cast<const X*>(s.next->h);
  const auto* next_dy = static_cast<const X*>(s.next->dy);
  const auto* next_dh = static_cast<const X*>(s.next->dh);
  const BackMoments moments = back_moments<Vec, X, kLayer>(s);
  const Float mean = Vec::splat(moments.mean), r = Vec::splat(moments.r);
  const Float down = Vec::splat(moments.down), level = Vec::splat(moments.level);
  const auto* dh = static_cast<const X*>(s.dh);
  each_vector<Vec>(s.width, [&](std::int64_t i, int n) {
    fetch<Vec>(next_h, i);
    fetch<Vec>(next_dy, i);
    const Float v = Vec::load(static_cast<const X*>(s.dy) + i, n);
    const Float h = Vec::load(static_cast<const X*>(s.h) + i, n);
    const Float normal = normalised<Vec, kLayer>(h, mean, r);
    if (s.p != nullptr) Vec::store(s.p + i, Vec::fma(v, normal, Vec::load(s.p + i, n)), n);
    if (s.q != nullptr) Vec::store(s.q + i, Vec::add(v, Vec::load(s.q + i, n)), n);
    Float d = Vec::fma(normal, down, s.a == nullptr ? v : Vec::mul(v, Vec::load(s.a + i, n)));
    if constexpr (kLayer) d = Vec::sub(d, level);
    if (dh == nullptr) {
      d = Vec::mul(d, r);
    } else {
      fetch<Vec>(next_dh, i);
      d = Vec::fma(d, r, Vec::load(dh + i, n));
    }
    Vec::store(static_cast<X*>(s.dx) + i, d, n);
    if (s.g != nullptr) {
      const Float residual = Vec::load(static_cast<const Residual*>(s.residual) + i, n);
      Vec::store(s.g + i, Vec::fma(residual, d, Vec::load(s.g + i, n)), n);
    }
    if (s.dresidual != nullptr) {
      if (s.gate != nullptr) d = Vec::mul(d, Vec::load(s.gate + i, n));
      Vec::store(static_cast<Residual*>(s.dresidual) + i, d, n);
    }
  });
}

template <class Vec>
inline typename Vec::Float load_any(const void* from, DType dtype, std::int64_t i, int n) {
  if (dtype == DType::kBF16) return Vec::load(static_cast<const bf16*>(from) + i, n);
  if (dtype == DType::kF16) return Vec::load(static_cast<const f16*>(from) + i, n);
  return Vec::load(static_cast<const float*>(from) + i, n);
}

template <class Vec>
void norm_affine(const NormAffine& s, std::int64_t width) {
  using Float = typename Vec::Float;
  const Float one = Vec::splat(1.0f), zero = Vec::splat(0.0f);
  each_vector<Vec>(width, [&](std::int64_t i, int n) {
    Float up = one;
    if (s.scale != nullptr) up = Vec::add(one, load_any<Vec>(s.scale, s.scale_dtype, i, n));
    if (s.a != nullptr) {
      Float w = one;
      if (s.weight != nullptr) w = load_any<Vec>(s.weight, s.weight_dtype, i, n);
      if (s.weight != nullptr && s.plus_one) w = Vec::add(one, w);
      Vec::store(s.a + i, Vec::mul(w, up), n);
    }
    if (s.c != nullptr) {
      Float c = zero;
      if (s.shift != nullptr) c = load_any<Vec>(s.shift, s.shift_dtype, i, n);
      if (s.bias != nullptr) c = Vec::fma(load_any<Vec>(s.bias, s.bias_dtype, i, n), up, c);
      Vec::store(s.c + i, c, n);
    }
  });
}

template <class Vec>
void norm_widen(const void* from, DType dtype, float* to, std::int64_t width) {
  each_vector<Vec>(width, [&](std::int64_t i, int n) {
    Vec::store(to + i, load_any<Vec>(from, dtype, i, n), n);
  });
}

template <class Vec>
void norm_accumulate(const float* from, float* to, std::int64_t width) {
  each_vector<Vec>(width, [&](std::int64_t i, int n) {
    Vec::store(to + i, Vec::add(Vec::load(to + i, n), Vec::load(from + i, n)), n);
  });
}

template <class Vec>
void norm_multiply_add(const float* a, const float* b, float* to, std::int64_t width) {
  each_vector<Vec>(width, [&](std::int64_t i, int n) {
    Vec::store(to + i, Vec::fma(Vec::load(a + i, n), Vec::load(b + i, n), Vec::load(to + i, n)), n);
  });
}

template <class Vec, class X, class Residual>
NormKernels pick_norm_kind(bool layer) {
  NormKernels kernels{};
  kernels.forward = norm_forward<Vec, X, Residual, false>;
  kernels.backward = norm_backward<Vec, X, Residual, false>;
  if (layer) {
    kernels.forward = norm_forward<Vec, X, Residual, true>;
    kernels.backward = norm_backward<Vec, X, Residual, true>;
  }
  kernels.affine = norm_affine<Vec>;
  kernels.widen = norm_widen<Vec>;
  kernels.accumulate = norm_accumulate<Vec>;
  kernels.multiply_add = norm_multiply_add<Vec>;
  return kernels;
}

template <class Vec, class X>
NormKernels pick_norm_residual(const NormVariant& k) {
  if (k.residual == DType::kBF16) return pick_norm_kind<Vec, X, bf16>(k.layer);
  if (k.residual == DType::kF16) return pick_norm_kind<Vec, X, f16>(k.layer);
  return pick_norm_kind<Vec, X, float>(k.layer);
}

template <class Vec>
NormKernels pick_norm(const NormVariant& k) {
  if (k.x == DType::kBF16) return pick_norm_residual<Vec, bf16>(k);
  if (k.x == DType::kF16) return pick_norm_residual<Vec, f16>(k);
  return pick_norm_residual<Vec, float>(k);
}

}  // namespace
}  // namespace vlakern
