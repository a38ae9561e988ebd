// The arithmetic of qkv_prep on the heads of one token, for one instruction set.
#pragma once

#include <cmath>

#include "common/number.h"
#include "common/vec_sum.h"
#include "qkv_prep/qkv_prep_heads.h"

namespace vlakern {
namespace {

constexpr int kQkvSpan = 16;

template <class Vec>
struct Pair {
  typename Vec::Float low, high;
};

template <class Vec, class T>
inline Pair<Vec> load_pair(const T* x, std::int64_t half, std::int64_t i, int n) {
  return {Vec::load(x + i, n), Vec::load(x + half + i, n)};
}

template <class Vec, class T>
inline void store_pair(T* y, std::int64_t half, std::int64_t i, int n, const Pair<Vec>& value) {
  Vec::store(y + i, value.low, n);
  Vec::store(y + half + i, value.high, n);
}

// Ahead of its use: where rows end the hardware stops to fetch ahead.
template <class Vec, class T>
inline void fetch_pair(const T* x, std::int64_t half, std::int64_t i) {
  if constexpr (Vec::kLanes == 1) return;
  __builtin_prefetch(x + i, 0, 2);
  __builtin_prefetch(x + half + i, 0, 2);
}

template <class Vec>
inline Pair<Vec> times(const Pair<Vec>& a, const Pair<Vec>& b) {
  return {Vec::mul(a.low, b.low), Vec::mul(a.high, b.high)};
}

template <class Vec, class X>
inline float square_of(const X* x, std::int64_t half) {
  return sum_run<Vec, kQkvSpan>(half, [&](typename Vec::Float acc, std::int64_t i, int n) {
    const Pair<Vec> v = load_pair<Vec>(x, half, i, n);
    return Vec::fma(v.high, v.high, Vec::fma(v.low, v.low, acc));
  });
}

// One rounding in place of four: every element of the head inherits them.
inline float reciprocal_root(float square, std::int64_t half, float eps) {
  const double mean = static_cast<double>(square) / static_cast<double>(2 * half);
  return static_cast<float>(1.0 / std::sqrt(mean + static_cast<double>(eps)));
}

// The factors of one token's pairs: y.low = low * own.low + high * cross.low, and so on.
template <class Vec, bool kNorm>
inline void set_factors(const QkvHeads& s) {
  each_vector<Vec>(s.half, [&](std::int64_t i, int n) {
    const auto cos = Vec::load(s.cos + i, n), sin = Vec::load(s.sin + i, n);
    Pair<Vec> own{cos, cos}, cross{Vec::sub(Vec::splat(0.0f), sin), sin};
    if constexpr (kNorm) {
      const Pair<Vec> w = load_pair<Vec>(s.weight, s.half, i, n);
      own = times<Vec>(own, w);
      cross = times<Vec>(cross, {w.high, w.low});
    }
    store_pair<Vec>(s.factors, s.half, i, n, own);
    store_pair<Vec>(s.factors + 2 * s.half, s.half, i, n, cross);
  });
}

// Heads whose roots are taken together, so that none of them waits for one.
constexpr int kQkvTogether = 16;

template <class Vec, class X, class Y, bool kNorm>
inline void forward_together(const QkvHeads& s, const X* x, Y* y, int count) {
  float roots[kQkvTogether];
  for (int k = 0; kNorm && k < count; ++k) roots[k] = square_of<Vec>(x + k * s.x_stride, s.half);
  for (int k = 0; kNorm && k < count; ++k) roots[k] = reciprocal_root(roots[k], s.half, s.eps);
  for (int k = 0; k < count; ++k, x += s.x_stride, y += s.y_stride) {
    auto r = Vec::splat(1.0f);
    if constexpr (kNorm) r = Vec::splat(roots[k]);
    each_vector<Vec>(s.half, [&](std::int64_t i, int n) {
      const Pair<Vec> own = load_pair<Vec>(s.factors, s.half, i, n);
      const Pair<Vec> cross = load_pair<Vec>(s.factors + 2 * s.half, s.half, i, n);
      const Pair<Vec> v = load_pair<Vec>(x, s.half, i, n);
      Pair<Vec> out{Vec::fma(v.low, own.low, Vec::mul(v.high, cross.low)),
                    Vec::fma(v.high, own.high, Vec::mul(v.low, cross.high))};
      if constexpr (kNorm) out = times<Vec>(out, {r, r});
      store_pair<Vec>(y, s.half, i, n, out);
    });
  }
}

template <class Vec, class X, class Y, bool kNorm>
inline void forward_heads(const QkvHeads& s) {
  set_factors<Vec, kNorm>(s);
  for (std::int64_t head = 0; head < s.heads; head += kQkvTogether) {
    forward_together<Vec, X, Y, kNorm>(
        s, static_cast<const X*>(s.x) + head * s.x_stride, static_cast<Y*>(s.y) + head * s.y_stride,
        static_cast<int>(std::min<std::int64_t>(kQkvTogether, s.heads - head)));
  }
}

template <class Vec, class X, class Y>
void qkv_forward(const QkvHeads& s) {
  if (s.weight == nullptr) {
    forward_heads<Vec, X, Y, false>(s);
  } else {
    forward_heads<Vec, X, Y, true>(s);
  }
}

template <class Vec>
inline Pair<Vec> turned_back(const Pair<Vec>& g, typename Vec::Float cos, typename Vec::Float sin) {
  const auto minus_sin = Vec::sub(Vec::splat(0.0f), sin);
  return {Vec::fma(g.low, cos, Vec::mul(g.high, sin)),
          Vec::fma(g.high, cos, Vec::mul(g.low, minus_sin))};
}

// What each head knows before its gradient is written: r, and -mean(u * n).
struct BackRoots {
  float r[kQkvTogether], down[kQkvTogether];
};

template <class Vec, class X>
inline void set_back_roots(const QkvBackHeads& s, const X* x, const X* dy, int count,
                           BackRoots& roots) {
  for (int k = 0; k < count; ++k, x += s.x_stride, dy += s.dy_stride) {
    float sums[2];
    sum_runs<Vec, kQkvSpan>(s.half, sums, [&](auto& acc, std::int64_t i, int n) {
      const Pair<Vec> v = load_pair<Vec>(x, s.half, i, n);
      const Pair<Vec> back = turned_back<Vec>(load_pair<Vec>(dy, s.half, i, n),
                                              Vec::load(s.cos + i, n), Vec::load(s.sin + i, n));
      const Pair<Vec> u = times<Vec>(back, load_pair<Vec>(s.weight, s.half, i, n));
      acc[0] = Vec::fma(v.high, v.high, Vec::fma(v.low, v.low, acc[0]));
      acc[1] = Vec::fma(u.high, v.high, Vec::fma(u.low, v.low, acc[1]));
    });
    roots.r[k] = sums[0];
    roots.down[k] = sums[1];
  }
  for (int k = 0; k < count; ++k) roots.r[k] = reciprocal_root(roots.r[k], s.half, s.eps);
  for (int k = 0; k < count; ++k) {
    roots.down[k] = -(roots.down[k] * roots.r[k]) / static_cast<float>(2 * s.half);
  }
}

// The gradients of weight, cos and sin: sums over heads.
template <class Vec>
struct BackSums {
  Pair<Vec> weight;
  typename Vec::Float cos, sin;
};

template <class Vec>
inline void add_sums(const QkvBackHeads& s, const BackSums<Vec>& sum, std::int64_t i, int n) {
  if (s.dweight != nullptr) {
    const Pair<Vec> known = load_pair<Vec>(s.dweight, s.half, i, n);
    store_pair<Vec>(s.dweight, s.half, i, n,
                    {Vec::add(known.low, sum.weight.low), Vec::add(known.high, sum.weight.high)});
  }
  if (s.dcos != nullptr) {
    Vec::store(s.dcos + i, Vec::add(Vec::load(s.dcos + i, n), sum.cos), n);
    Vec::store(s.dsin + i, Vec::add(Vec::load(s.dsin + i, n), sum.sin), n);
  }
}

// dx = r * (u - n * mean(u * n)) with n = x * r; without weights u alone.
template <class Vec, class X, bool kNorm, bool kAngles>
inline void backward_together(const QkvBackHeads& given, std::int64_t first, int count) {
  const QkvBackHeads s = given;  // a copy, since no store can change that
  const X* x = static_cast<const X*>(s.x) + first * s.x_stride;
  const X* dy = static_cast<const X*>(s.dy) + first * s.dy_stride;
  const X* next_x = static_cast<const X*>(s.next_x) + first * s.x_stride;
  const X* next_dy = static_cast<const X*>(s.next_dy) + first * s.dy_stride;
  X* dx = static_cast<X*>(s.dx) + first * s.dx_stride;
  BackRoots roots;
  if constexpr (kNorm) set_back_roots<Vec>(s, x, dy, count, roots);
  each_vector<Vec>(s.half, [&](std::int64_t i, int n) {
    const auto cos = Vec::load(s.cos + i, n), sin = Vec::load(s.sin + i, n);
    const auto zero = Vec::splat(0.0f);
    Pair<Vec> w{zero, zero};
    if constexpr (kNorm) w = load_pair<Vec>(s.weight, s.half, i, n);
    BackSums<Vec> sum{{zero, zero}, zero, zero};
    for (int k = 0; k < count; ++k) {
      fetch_pair<Vec>(next_dy + k * s.dy_stride, s.half, i);
      if constexpr (kNorm || kAngles) fetch_pair<Vec>(next_x + k * s.x_stride, s.half, i);
      const Pair<Vec> g = load_pair<Vec>(dy + k * s.dy_stride, s.half, i, n);
      Pair<Vec> d = turned_back<Vec>(g, cos, sin), value{zero, zero};
      if constexpr (kNorm || kAngles) value = load_pair<Vec>(x + k * s.x_stride, s.half, i, n);
      if constexpr (kNorm) {
        const auto r = Vec::splat(roots.r[k]), down = Vec::splat(roots.down[k]);
        value = times<Vec>(value, {r, r});
        sum.weight = {Vec::fma(d.low, value.low, sum.weight.low),
                      Vec::fma(d.high, value.high, sum.weight.high)};
        d = times<Vec>(d, w);
        d = times<Vec>({Vec::fma(value.low, down, d.low), Vec::fma(value.high, down, d.high)},
                       {r, r});
      }
      store_pair<Vec>(dx + k * s.dx_stride, s.half, i, n, d);
      if constexpr (kAngles) {
        if constexpr (kNorm) value = times<Vec>(value, w);
        const auto along = Vec::fma(value.low, g.low, Vec::mul(value.high, g.high));
        const auto across = Vec::mul(Vec::sub(zero, value.high), g.low);
        sum.cos = Vec::add(sum.cos, along);
        sum.sin = Vec::add(sum.sin, Vec::fma(value.low, g.high, across));
      }
    }
    add_sums<Vec>(s, sum, i, n);
  });
}

template <class Vec, class X, bool kNorm, bool kAngles>
inline void backward_heads(const QkvBackHeads& s) {
  for (std::int64_t head = 0; head < s.heads; head += kQkvTogether) {
    backward_together<Vec, X, kNorm, kAngles>(
        s, head, static_cast<int>(std::min<std::int64_t>(kQkvTogether, s.heads - head)));
  }
}

template <class Vec, class X>
void qkv_backward(const QkvBackHeads& s) {
  if (s.weight != nullptr) {
    s.dcos != nullptr ? backward_heads<Vec, X, true, true>(s)
                      : backward_heads<Vec, X, true, false>(s);
  } else {
    s.dcos != nullptr ? backward_heads<Vec, X, false, true>(s)
                      : backward_heads<Vec, X, false, false>(s);
  }
}

template <class Vec, class X, class Y>
void qkv_copy(const void* x, void* y, std::int64_t count) {
  each_vector<Vec>(count, [&](std::int64_t i, int n) {
    Vec::store(static_cast<Y*>(y) + i, Vec::load(static_cast<const X*>(x) + i, n), n);
  });
}

template <class Vec>
void qkv_widen(const void* from, DType dtype, bool plus_one, float* to, std::int64_t count) {
  if (dtype == DType::kBF16) qkv_copy<Vec, bf16, float>(from, to, count);
  if (dtype == DType::kF16) qkv_copy<Vec, f16, float>(from, to, count);
  if (dtype == DType::kF32) qkv_copy<Vec, float, float>(from, to, count);
  for (std::int64_t i = 0; plus_one && i < count; ++i) to[i] += 1.0f;
}

template <class Vec>
void qkv_accumulate(const float* from, float* to, float* carry, std::int64_t count) {
  each_vector<Vec>(count, [&](std::int64_t i, int n) {
    const auto sum = Vec::load(to + i, n);
    const auto added = Vec::sub(Vec::load(from + i, n), Vec::load(carry + i, n));
    const auto next = Vec::add(sum, added);
    Vec::store(carry + i, Vec::sub(Vec::sub(next, sum), added), n);
    Vec::store(to + i, next, n);
  });
}

template <class Vec, class X, class Y>
QkvKernels qkv_kernels() {
  return {qkv_forward<Vec, X, Y>, qkv_backward<Vec, X>, qkv_copy<Vec, X, Y>,
          qkv_copy<Vec, X, X>,    qkv_widen<Vec>,       qkv_accumulate<Vec>};
}

template <class Vec, class X>
QkvKernels pick_qkv_out(DType out) {
  if (out == DType::kBF16) return qkv_kernels<Vec, X, bf16>();
  if (out == DType::kF16) return qkv_kernels<Vec, X, f16>();
  return qkv_kernels<Vec, X, float>();
}

template <class Vec>
QkvKernels pick_qkv(const QkvVariant& k) {
  if (k.in == DType::kBF16) return pick_qkv_out<Vec, bf16>(k.out);
  if (k.in == DType::kF16) return pick_qkv_out<Vec, f16>(k.out);
  return pick_qkv_out<Vec, float>(k.out);
}

}  // namespace
}  // namespace vlakern
