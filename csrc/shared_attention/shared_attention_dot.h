// Products of small matrices in 32-bit words: a word is one fp32 number, or two adjacent bf16.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/number.h"

namespace vlakern {
namespace {

// Words are fp32 numbers, whatever the tensors hold.
template <class V>
struct DotF32 {
  using Vec = V;
  using Word = float;
  static constexpr int kPair = 1;
  static constexpr std::int64_t kSteps = 16;
  static constexpr int kVectors = V::kLanes >= 16 || V::kLanes == 4 ? 3 : 1;
  using Packed = typename V::Float;
  static Packed load(const float* p) { return V::load(p, V::kLanes); }
  static Packed broadcast(const float* p) { return V::splat(*p); }
  static typename V::Float dot(typename V::Float sum, Packed a, Packed b) {
    return V::fma(a, b, sum);
  }
  // Weights of two neighbouring keys for these queries, as the words of rows `first` and `second`.
  static void store_keys(float* first, float* second, typename V::Float even,
                         typename V::Float odd) {
    V::store(first, even, V::kLanes);
    V::store(second, odd, V::kLanes);
  }
  static void store_queries(float* p, typename V::Float value) { V::store(p, value, V::kLanes); }
};

enum class Put { kSet, kScaleAdd, kAdd };

// C[r][lane] (op)= sum over s of A[r * a_row + s * a_step] · B[s * b_step + lane], for kRows rows.
template <class Dot, int kRows, int kVectors, Put kPut>
inline void product(const typename Dot::Word* a, std::int64_t a_row, std::int64_t a_step,
                    const typename Dot::Word* b, std::int64_t b_step, float* c, std::int64_t c_row,
                    std::int64_t steps, const float* factor) {
  using Vec = typename Dot::Vec;
  typename Vec::Float sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = Vec::splat(0.0f);
  }
  for (std::int64_t s = 0; s < steps; ++s) {
    typename Dot::Packed right[kVectors];
    for (int v = 0; v < kVectors; ++v) right[v] = Dot::load(b + v * Vec::kLanes);
    for (int r = 0; r < kRows; ++r) {
      const auto left = Dot::broadcast(a + r * a_row);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = Dot::dot(sum[r][v], left, right[v]);
    }
    a += a_step;
    b += b_step;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      float* at = c + r * c_row + v * Vec::kLanes;
      auto value = sum[r][v];
      if (kPut == Put::kScaleAdd) {
        value = Vec::fma(Vec::load(at, Vec::kLanes), Vec::splat(factor[r]), value);
      }
      if (kPut == Put::kAdd) value = Vec::add(Vec::load(at, Vec::kLanes), value);
      Vec::store(at, value, Vec::kLanes);
    }
  }
}

constexpr int kProductRows = 8;

// What to do between products: by default nothing.
struct Nothing {
  void operator()() const {}
};

template <class Dot, int kVectors, Put kPut, class Between>
inline void product_rows(const typename Dot::Word* a, std::int64_t a_row, std::int64_t a_step,
                         const typename Dot::Word* b, std::int64_t b_step, float* c,
                         std::int64_t c_row, std::int64_t rows, std::int64_t steps,
                         const float* factor, Between& between) {
  for (std::int64_t r = 0; r < rows; r += kProductRows) {
    product<Dot, kProductRows, kVectors, kPut>(a + r * a_row, a_row, a_step, b, b_step,
                                               c + r * c_row, c_row, steps,
                                               factor == nullptr ? nullptr : factor + r);
    between();
  }
}

// All rows, a multiple of kProductRows, and `lanes` lanes, a multiple of the vector's. Long sums
// are made in pieces: fp32 sums stay as exact as a library's, and B's piece stays in the first
// cache.
template <class Dot, Put kPut, class Between = Nothing>
void products(const typename Dot::Word* a, std::int64_t a_row, std::int64_t a_step,
              const typename Dot::Word* b, std::int64_t b_step, float* c, std::int64_t c_row,
              std::int64_t rows, std::int64_t lanes, std::int64_t steps,
              const float* factor = nullptr, Between between = {}) {
  constexpr int kLanes = Dot::Vec::kLanes;
  for (std::int64_t lane = 0; lane < lanes;) {
    const std::int64_t left = (lanes - lane) / kLanes;
    const std::int64_t vectors =
        left == 4 ? std::min(2, Dot::kVectors) : std::min<std::int64_t>(left, Dot::kVectors);
    for (std::int64_t s = 0; s < steps || s == 0; s += Dot::kSteps) {
      const auto run = [&](auto* first, auto* later) {
        (s == 0 ? first : later)(a + s * a_step, a_row, a_step, b + s * b_step + lane, b_step,
                                 c + lane, c_row, rows, std::min(steps - s, Dot::kSteps), factor,
                                 between);
      };
      if (vectors == 1) {
        run(product_rows<Dot, 1, kPut, Between>, product_rows<Dot, 1, Put::kAdd, Between>);
      } else if (vectors == 2) {
        run(product_rows<Dot, 2, kPut, Between>, product_rows<Dot, 2, Put::kAdd, Between>);
      } else {
        run(product_rows<Dot, 3, kPut, Between>, product_rows<Dot, 3, Put::kAdd, Between>);
      }
    }
    lane += vectors * kLanes;
  }
}

// A row of `width` numbers as words: width / kPair of them.
template <class Dot, class T>
inline void pack_row(const T* row, std::int64_t width, typename Dot::Word* out) {
  if constexpr (Dot::kPair == 2 || sizeof(T) == 4) {
    std::memcpy(out, row, static_cast<std::size_t>(width) * sizeof(T));
  } else {
    using Vec = typename Dot::Vec;
    for (std::int64_t d = 0; d < width; d += Vec::kLanes) {
      const int n = static_cast<int>(std::min<std::int64_t>(Vec::kLanes, width - d));
      Vec::store(out + d, Vec::load(row + d, n), n);
    }
  }
}

// The same row as one lane of a transposed matrix: word w goes to out[w * lanes].
template <class Dot, class T>
inline void pack_lane(const T* row, std::int64_t width, std::int64_t lanes,
                      typename Dot::Word* out) {
  for (std::int64_t w = 0; w < width / Dot::kPair; ++w) {
    if constexpr (Dot::kPair == 2) {
      std::memcpy(out + w * lanes, row + 2 * w, sizeof(*out));
    } else {
      out[w * lanes] = to_float(row[w]);
    }
  }
}

// kPair rows, interleaved; `second` null for zeros.
template <class Dot, class T>
inline void pack_rows_together(const T* first, const T* second, std::int64_t width,
                               typename Dot::Word* out) {
  if constexpr (Dot::kPair == 2) {
    Dot::interleave(first, second, width, out);
  } else {
    pack_row<Dot>(first, width, out);
  }
}

}  // namespace
}  // namespace vlakern
