// The inner loops of image_prep for one instruction set; included by one translation unit per ISA.
// `Passes` are those of whole levels, which portable C++ does not bring to the machine.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/number.h"
#include "common/vec_sum.h"
#include "image_prep/image_prep_kernels.h"

namespace vlakern {
namespace {

inline std::uint8_t clip_level(std::int32_t total) {
  return static_cast<std::uint8_t>(std::clamp(total >> kImagePrepBits, 0, 255));
}

inline void expand_pixels(const std::uint8_t* rgb, std::int64_t begin, std::int64_t pixels,
                          std::uint8_t* rgbx) {
  for (std::int64_t i = begin; i < pixels; ++i) {
    std::memcpy(rgbx + 4 * i, rgb + 3 * i, 3);
    rgbx[4 * i + 3] = 0;
  }
}

struct PlainPasses {
  static constexpr ImagePrepLayout kLayout = ImagePrepLayout::kPlain;

  static void expand(const std::uint8_t* rgb, std::int64_t pixels, std::uint8_t* rgbx) {
    expand_pixels(rgb, 0, pixels, rgbx);
  }

  static void columns(const std::uint8_t* const (&rows)[4], const ImagePrepColumns& table,
                      std::uint8_t* const (&out)[4]) {
    const int taps = 4 * table.groups;
    for (int r = 0; r < 4; ++r) {
      for (std::int64_t x = 0; x < table.count; ++x) {
        const std::int32_t* weights = table.weights + x * taps;
        const std::uint8_t* p = rows[r] + table.offset[x];
        std::int32_t total[3] = {};
        for (std::int32_t& t : total) t = 1 << (kImagePrepBits - 1);
        for (int k = 0; k < taps; ++k) {
          for (int c = 0; c < 3; ++c) total[c] += weights[k] * p[3 * k + c];
        }
        for (int c = 0; c < 3; ++c) out[r][4 * x + c] = clip_level(total[c]);
        out[r][4 * x + 3] = 0;
      }
    }
  }

  static void blend(const std::uint8_t* const* rows, const std::int32_t* weights, int groups,
                    std::int64_t bytes, std::uint8_t* out) {
    constexpr int kPiece = 32;  // of totals that stay in registers
    for (std::int64_t i = 0; i < bytes; i += kPiece) {
      std::int32_t total[kPiece];
      std::fill_n(total, kPiece, 1 << (kImagePrepBits - 1));
      for (int k = 0; k < 4 * groups; ++k) {
        const std::uint8_t* row = rows[k] + i;
        for (int j = 0; j < kPiece; ++j) total[j] += weights[k] * row[j];
      }
      for (int j = 0; j < kPiece; ++j) out[i + j] = clip_level(total[j]);
    }
  }
};

// The compiler's portable vectors; only a typedef takes a size that depends on a parameter.
template <int kLanes>
struct Lanes {
  typedef std::int32_t Words __attribute__((vector_size(4 * kLanes)));
  typedef float Floats __attribute__((vector_size(4 * kLanes)));
};

// Channel c of RGBX pixels.
template <class Vec>
inline typename Vec::Float load_channel(const std::uint8_t* rgbx, int c) {
  typename Vec::Float result;
  if constexpr (Vec::kLanes == 1) {
    result = static_cast<float>(rgbx[c]);
  } else {
    typename Lanes<Vec::kLanes>::Words pixels;
    std::memcpy(&pixels, rgbx, sizeof(pixels));
    const auto values =
        __builtin_convertvector((pixels >> (8 * c)) & 255, typename Lanes<Vec::kLanes>::Floats);
    std::memcpy(&result, &values, sizeof(result));
  }
  return result;
}

inline void blend_real(const std::uint8_t* a, const std::uint8_t* b, const float* weights,
                       std::int64_t count, float* out) {
  const float first = weights[0], second = weights[1];
  for (std::int64_t i = 0; i < count; ++i) {
    out[i] = std::fma(second, static_cast<float>(b[i]), first * static_cast<float>(a[i]));
  }
}

// Four outputs at a time: the channels of each lie together, then those of all four.
inline void columns_real(const float* rgb, const std::int32_t* offset, const float* weights,
                         std::int64_t step, std::int64_t count, float* out, std::int64_t plane) {
  constexpr int kTogether = 4;
  for (std::int64_t x = 0; x < count; x += kTogether) {
    float pixels[kTogether][4];
    const int n = static_cast<int>(std::min<std::int64_t>(kTogether, count - x));
    for (int i = 0; i < kTogether; ++i) {
      const std::int64_t at = x + std::min(i, n - 1);
      const float* p = rgb + offset[at];
      const float first = weights[2 * at], second = weights[2 * at + 1];
      for (int c = 0; c < 4; ++c) pixels[i][c] = std::fma(second, p[step + c], first * p[c]);
    }
    if (n == kTogether) {
      for (int c = 0; c < 3; ++c) {
        for (int i = 0; i < kTogether; ++i) out[c * plane + x + i] = pixels[i][c];
      }
    } else {
      for (int c = 0; c < 3; ++c) {
        for (int i = 0; i < n; ++i) out[c * plane + x + i] = pixels[i][c];
      }
    }
  }
}

// A correctly rounded quotient by a constant: one step of Newton on the product with 1 / divisor.
template <class Vec>
struct Divider {
  typename Vec::Float reciprocal, minus_divisor;

  explicit Divider(float divisor)
      : reciprocal(Vec::splat(1.0f / divisor)), minus_divisor(Vec::splat(-divisor)) {}
  typename Vec::Float operator()(typename Vec::Float value) const {
    const auto quotient = Vec::mul(value, reciprocal);
    return Vec::fma(Vec::fma(quotient, minus_divisor, value), reciprocal, quotient);
  }
};

template <class Vec, class Out>
void store(const ImagePrepRow& given, const ImagePrepNorm& norm) {
  const ImagePrepRow row = given;  // a copy, since no store can change that
  const Divider<Vec> by_divisor(norm.divisor);
  const Divider<Vec> by_std[3] = {Divider<Vec>(norm.std[0]), Divider<Vec>(norm.std[1]),
                                  Divider<Vec>(norm.std[2])};
  typename Vec::Float mean[3];
  for (int c = 0; c < 3; ++c) mean[c] = Vec::splat(norm.mean[c]);
  // Division by 1 changes no bit.
  const bool unit = norm.std[0] == 1.0f && norm.std[1] == 1.0f && norm.std[2] == 1.0f;
  Out* run = static_cast<Out*>(row.out);
  for (std::int64_t x = 0; x < row.width; x += row.run, run += row.run_stride) {
    each_vector<Vec>(row.run, [&](std::int64_t i, int n) {
      for (int c = 0; c < 3; ++c) {
        auto value = row.levels != nullptr ? load_channel<Vec>(row.levels + 4 * (x + i), c)
                                           : Vec::load(row.values + c * row.plane + x + i, n);
        value = Vec::sub(by_divisor(value), mean[c]);
        if (!unit) value = by_std[c](value);
        Vec::store(run + c * row.channel_stride + i, value, n);
      }
    });
  }
}

template <class Vec, class Passes>
ImagePrepKernels image_prep_kernels() {
  return {Passes::kLayout, Passes::expand,    Passes::columns,  Passes::blend,  blend_real,
          columns_real,    store<Vec, float>, store<Vec, bf16>, store<Vec, f16>};
}

}  // namespace
}  // namespace vlakern
