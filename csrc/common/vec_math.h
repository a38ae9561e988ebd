// Functions over the lanes of any Vec: every step is exactly rounded, so that all instruction sets
// give the same bits. Errors are a few units in the last place of fp32.
#pragma once

#include <cstdint>

namespace vlakern {
namespace {

// The polynomial c[0] + c[1] x + ...
template <class Vec, int kCount>
typename Vec::Float polynomial(const float (&c)[kCount], typename Vec::Float x) {
  auto y = Vec::splat(c[kCount - 1]);
  for (int i = kCount - 2; i >= 0; --i) y = Vec::fma(y, x, Vec::splat(c[i]));
  return y;
}

// e^x; infinity above 88.8, 0 below -104, NaN stays.
template <class Vec>
typename Vec::Float vec_exp(typename Vec::Float x) {
  // (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2, least squares at Chebyshev points, 8e-9.
  static constexpr float kTail[] = {0.5f, 0.16666576f, 0.041666467f, 0.0083631799f, 0.0013933649f};
  x = Vec::min(Vec::splat(89.0f), Vec::max(Vec::splat(-105.0f), x));
  const auto n = Vec::round(Vec::mul(x, Vec::splat(1.44269504f)));
  auto r = Vec::fma(n, Vec::splat(-0x1.62e4p-1f), x);  // ln 2 in two parts, n times the first exact
  r = Vec::fma(n, Vec::splat(-0x1.7f7d1cp-20f), r);
  const auto tail = Vec::mul(Vec::mul(r, r), polynomial<Vec>(kTail, r));
  const auto power = Vec::add(Vec::splat(1.0f), Vec::add(r, tail));
  // In two halves, since n may leave the exponent's range by a little.
  const auto half = Vec::round(Vec::mul(n, Vec::splat(0.5f)));
  return Vec::mul(Vec::mul(power, Vec::pow2(half)), Vec::pow2(Vec::sub(n, half)));
}

// ln x of a positive, normal x; off by less than 1.5 units in the last place.
template <class Vec>
typename Vec::Float vec_log(typename Vec::Float x) {
  // (ln(1 + f) - f + f^2 / 2) / f^3 for f of [sqrt(1/2) - 1, sqrt 2 - 1], minimax, 6e-9 of f.
  static constexpr float kTail[] = {0.33333316f, -0.2500081f,  0.20002285f, -0.16624546f,
                                    0.1418123f,  -0.13128868f, 0.12881424f, -0.078590296f};
  // x = m 2^n with m from sqrt(1/2) to sqrt 2: the sum's exponent field counts from there.
  const auto sum = Vec::bits_add(Vec::bits_of_float(x), Vec::bits_splat(0x3f800000u - 0x3f3504f3u));
  const auto n = Vec::sub(Vec::from_signed(Vec::template bits_right<23>(sum)), Vec::splat(127.0f));
  const auto mantissa = Vec::bits_and(sum, Vec::bits_splat(0x007fffffu));
  const auto m = Vec::float_of_bits(Vec::bits_add(mantissa, Vec::bits_splat(0x3f3504f3u)));
  const auto f = Vec::sub(m, Vec::splat(1.0f));
  const auto square = Vec::mul(f, f);
  auto y = Vec::mul(Vec::mul(polynomial<Vec>(kTail, f), f), square);
  y = Vec::fma(n, Vec::splat(0x1.7f7d1cp-20f), y);
  y = Vec::fma(Vec::splat(-0.5f), square, y);
  return Vec::fma(n, Vec::splat(0x1.62e4p-1f), Vec::add(f, y));
}

// 2^x for x <= 127, two operations in three of vec_exp: 0 below 2^-126, NaN stays.
template <class Vec>
typename Vec::Float vec_exp2(typename Vec::Float x) {
  // (2^f - 1) / f for |f| <= 1 / 2, 1.6e-8.
  static constexpr float kTail[] = {0.6931472f,   0.24022648f,   0.055503324f,
                                    0.009618437f, 0.0013398875f, 0.0001535336f};
  x = Vec::max(Vec::splat(-127.0f), x);
  const auto n = Vec::round(x);  // pow2(-127) has no bit set
  const auto f = Vec::sub(x, n);
  return Vec::mul(Vec::fma(f, polynomial<Vec>(kTail, f), Vec::splat(1.0f)), Vec::pow2(n));
}

// x / (1 + e^-x).
template <class Vec>
typename Vec::Float vec_silu(typename Vec::Float x) {
  const auto decay = vec_exp<Vec>(Vec::sub(Vec::splat(0.0f), x));
  return Vec::div(x, Vec::add(Vec::splat(1.0f), decay));
}

// x (1 + tanh u) / 2 = x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3).
template <class Vec>
typename Vec::Float vec_gelu_tanh(typename Vec::Float x) {
  const auto cubic =
      Vec::fma(Vec::mul(x, x), Vec::splat(-1.59576912f * 0.044715f), Vec::splat(-1.59576912f));
  return Vec::div(x, Vec::add(Vec::splat(1.0f), vec_exp<Vec>(Vec::mul(x, cubic))));
}

// x (1 + erf(x / sqrt 2)) / 2.
template <class Vec>
typename Vec::Float vec_gelu_erf(typename Vec::Float x) {
  // erf(t) / t - 1 in t^2 for t <= 0.9, and ln erfc(t) in t up to 4, both least squares, 1e-8.
  static constexpr float kNear[] = {0.12837915f,   -0.37612531f,  0.11282212f,
                                    -0.026781339f, 0.0050153574f, -0.00061069895f};
  static constexpr float kFar[] = {-0.00038120919f, -1.1268271f,    -0.63875878f,  -0.10241018f,
                                   0.021423425f,    -0.0028232227f, 0.00017155633f};
  const auto one = Vec::splat(1.0f);
  const auto t = Vec::min(Vec::splat(4.0f), Vec::mul(Vec::abs(x), Vec::splat(0.707106781f)));
  const auto near = Vec::fma(t, polynomial<Vec>(kNear, Vec::mul(t, t)), t);
  const auto far = Vec::sub(one, vec_exp<Vec>(polynomial<Vec>(kFar, t)));
  const auto erf = Vec::select(Vec::less(t, Vec::splat(0.9f)), near, far);
  const auto signed_erf =
      Vec::select(Vec::less(x, Vec::splat(0.0f)), Vec::sub(Vec::splat(0.0f), erf), erf);
  return Vec::mul(Vec::mul(x, Vec::splat(0.5f)), Vec::add(one, signed_erf));
}

}  // namespace
}  // namespace vlakern
