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

template <class Vec, class X, bool kLayer>
inline RowMoments row_moments(const X* h, std::int64_t width, float eps) {
  using Float = typename Vec::Float;
  const auto count = static_cast<float>(width);
  float mean = 0.0f;
  if constexpr (kLayer) {
    mean =
        sum_run<Vec, kNormSpan>(width, [&](Float acc, std::int64_t i,
                                           int n) { return Vec::add(acc, Vec::load(h + i, n)); }) /
        count;
  }
  const Float center = Vec::splat(mean);
  const float square = sum_run<Vec, kNormSpan>(width, [&](Float acc, std::int64_t i, int n) {
    Float v = Vec::load(h + i, n);
    if constexpr (kLayer) v = leading_lanes<Vec>(Vec::sub(v, center), n);
    return Vec::fma(v, v, acc);
  });
  // One rounding in place of four: every element of the row inherits them.
  const double variance = static_cast<double>(square) / static_cast<double>(width);
  return {mean, static_cast<float>(1.0 / std::sqrt(variance + static_cast<double>(eps)))};
}

// n = (h - mean) * r
template <class Vec, bool kLayer>
inline typename Vec::Float normalised(typename Vec::Float h, typename Vec::Float mean,
                                      typename Vec::Float r) {
  if constexpr (kLayer) h = Vec::sub(h, mean);
  return Vec::mul(h, r);
}

template <class Vec, class X, class Residual>
inline void add_residual(const NormRow& s) {
  const auto* x = static_cast<const X*>(s.x);
  const auto* residual = static_cast<const Residual*>(s.residual);
  auto* h = static_cast<X*>(s.h);
  if (s.gate == nullptr) {
    return each_vector<Vec>(s.width, [&](std::int64_t i, int n) {
      Vec::store(h + i, Vec::add(Vec::load(x + i, n), Vec::load(residual + i, n)), n);
    });
  }
  each_vector<Vec>(s.width, [&](std::int64_t i, int n) {
    const auto gate = Vec::load(s.gate + i, n);
    Vec::store(h + i, Vec::fma(gate, Vec::load(residual + i, n), Vec::load(x + i, n)), n);
  });
}

template <class Vec, class X, class Residual, bool kLayer>
void norm_forward(const NormRow& s) {
  const auto* h = static_cast<const X*>(s.x);
  if (s.residual != nullptr) {
    add_residual<Vec, X, Residual>(s);
    h = static_cast<const X*>(s.h);
  }
  const RowMoments moments = row_moments<Vec, X, kLayer>(h, s.width, s.eps);
  const auto mean = Vec::splat(moments.mean), r = Vec::splat(moments.r);
  auto* y = static_cast<X*>(s.y);
  const auto n_of = [&](std::int64_t i, int n) {
    return normalised<Vec, kLayer>(Vec::load(h + i, n), mean, r);
  };
  if (s.a == nullptr && s.c == nullptr) {
    each_vector<Vec>(s.width, [&](std::int64_t i, int n) { Vec::store(y + i, n_of(i, n), n); });
  } else if (s.c == nullptr) {
    each_vector<Vec>(s.width, [&](std::int64_t i, int n) {
      Vec::store(y + i, Vec::mul(n_of(i, n), Vec::load(s.a + i, n)), n);
    });
  } else if (s.a == nullptr) {
    each_vector<Vec>(s.width, [&](std::int64_t i, int n) {
      Vec::store(y + i, Vec::add(n_of(i, n), Vec::load(s.c + i, n)), n);
    });
  } else {
    each_vector<Vec>(s.width, [&](std::int64_t i, int n) {
      Vec::store(y + i, Vec::fma(n_of(i, n), Vec::load(s.a + i, n), Vec::load(s.c + i, n)), n);
    });
  }
}

// What one row of the backward pass knows before its gradient is written.
template <class Vec>
struct BackMoments {
  typename Vec::Float mean, r, down, level;  // down = -mean(u * n), level = mean(u)
};

template <class Vec, class X, bool kLayer>
inline BackMoments<Vec> back_moments(const NormBackRows& s, int k) {
  using Float = typename Vec::Float;
  const auto* dy = static_cast<const X*>(s.dy[k]);
  const auto* h = static_cast<const X*>(s.h[k]);
  const RowMoments moments = row_moments<Vec, X, kLayer>(h, s.width, s.eps);
  const Float mean = Vec::splat(moments.mean), r = Vec::splat(moments.r);
  const auto u_of = [&](std::int64_t i, int n) {
    const Float v = Vec::load(dy + i, n);
    return s.a == nullptr ? v : Vec::mul(v, Vec::load(s.a + i, n));
  };
  const float along = sum_run<Vec, kNormSpan>(s.width, [&](Float acc, std::int64_t i, int n) {
    const Float normal = normalised<Vec, kLayer>(Vec::load(h + i, n), mean, r);
    return Vec::fma(u_of(i, n), normal, acc);
  });
  float level = 0.0f;
  if constexpr (kLayer) {
    level = sum_run<Vec, kNormSpan>(
        s.width, [&](Float acc, std::int64_t i, int n) { return Vec::add(acc, u_of(i, n)); });
  }
  const auto count = static_cast<float>(s.width);
  return {mean, r, Vec::splat(-along / count), Vec::splat(level / count)};
}

// dx = dh + r * (u - n * mean(u * n) - mean(u)) with u = dy * a, the last term for LayerNorm alone;
// the sums over rows are brought together before they go to memory.
template <class Vec, class X, class Residual, bool kLayer, int kRows>
void norm_backward(const NormBackRows& s) {
  using Float = typename Vec::Float;
  BackMoments<Vec> moments[kRows];
  for (int k = 0; k < kRows; ++k) moments[k] = back_moments<Vec, X, kLayer>(s, k);
  each_vector<Vec>(s.width, [&](std::int64_t i, int n) {
    Float p = Vec::splat(0.0f), q = p, g = p;
    for (int k = 0; k < kRows; ++k) {
      const auto& [mean, r, down, level] = moments[k];
      const Float v = Vec::load(static_cast<const X*>(s.dy[k]) + i, n);
      const Float h = Vec::load(static_cast<const X*>(s.h[k]) + i, n);
      const Float normal = normalised<Vec, kLayer>(h, mean, r);
      p = Vec::fma(v, normal, p);
      q = Vec::add(v, q);
      Float d = Vec::fma(normal, down, s.a == nullptr ? v : Vec::mul(v, Vec::load(s.a + i, n)));
      if constexpr (kLayer) d = Vec::sub(d, level);
      if (s.dh[0] == nullptr) {
        d = Vec::mul(d, r);
      } else {
        d = Vec::fma(d, r, Vec::load(static_cast<const X*>(s.dh[k]) + i, n));
      }
      Vec::store(static_cast<X*>(s.dx[k]) + i, d, n);
      if (s.g != nullptr) {
        g = Vec::fma(Vec::load(static_cast<const Residual*>(s.residual[k]) + i, n), d, g);
      }
      if (s.dresidual[0] != nullptr) {
        if (s.gate != nullptr) d = Vec::mul(d, Vec::load(s.gate + i, n));
        Vec::store(static_cast<Residual*>(s.dresidual[k]) + i, d, n);
      }
    }
    if (s.p != nullptr) Vec::store(s.p + i, Vec::add(p, Vec::load(s.p + i, n)), n);
    if (s.q != nullptr) Vec::store(s.q + i, Vec::add(q, Vec::load(s.q + i, n)), n);
    if (s.g != nullptr) Vec::store(s.g + i, Vec::add(g, Vec::load(s.g + i, n)), n);
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
  kernels.backward = norm_backward<Vec, X, Residual, false, 1>;
  kernels.backward_rows = norm_backward<Vec, X, Residual, false, kNormBackRows>;
  if (layer) {
    kernels.forward = norm_forward<Vec, X, Residual, true>;
    kernels.backward = norm_backward<Vec, X, Residual, true, 1>;
    kernels.backward_rows = norm_backward<Vec, X, Residual, true, kNormBackRows>;
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
