// The ops of a layer on an engine's memory, with everything that stays the same filled in.
#pragma once

#include <cstdint>
#include <string>

#include "common/tensor.h"
#include "engine/engine_model.h"
#include "linear/linear.h"
#include "norm/norm.h"
#include "shared_attention/shared_attention.h"

namespace vlakern {

// Rows of adjacent elements.
struct Rows {
  void* data;
  std::int64_t stride;  // [elements]
  DType dtype;

  Rows from(std::int64_t row) const { return columns(row * stride); }
  Rows columns(std::int64_t first) const {
    return {static_cast<char*>(data) + first * dtype_size(dtype), stride, dtype};
  }
};

inline Rows rows_of(float* data, std::int64_t width) { return {data, width, DType::kF32}; }
inline Rows rows_of(char* data, std::int64_t width, DType dtype) { return {data, width, dtype}; }

// [count, heads, width], each row's heads side by side.
inline Tensor heads_of(const Rows& rows, std::int64_t count, std::int64_t heads,
                       std::int64_t width) {
  return {reinterpret_cast<std::uintptr_t>(rows.data),
          rows.dtype,
          3,
          {count, heads, width},
          {rows.stride, width, 1}};
}

template <class T>
Tensor vector_of(const T* data, std::int64_t count, DType dtype) {
  return {reinterpret_cast<std::uintptr_t>(data), dtype, 1, {count}, {1}};
}

// Attention of documents [cu] to their own keys; a prefix and an order are set by name.
inline SharedAttentionTensors attention_of(const Tensor& q, const Tensor& k, const Tensor& v,
                                           const Tensor& cu, const Tensor& kv_end,
                                           const Tensor& out, const Tensor& lse) {
  return {q, k, v, cu, cu, kv_end, {}, {}, {}, {}, {}, {}, out, lse};
}

// x += gate * added, and RMSNorm(x) * (1 + scale) + shift.
struct Adaptive {
  const float* scale;         // [width]; the second group's are `step` further, here and below
  const float* gate;          // [width] or null: nothing was added
  const float* added;         // [m, width]
  const std::int32_t* group;  // [m] 0 or 1, or null: all rows are of the first
  std::int64_t step;          // [elements]
};

class Calls {
 public:
  Calls(Isa isa, int threads, char* workspace)
      : isa_(isa), name_(isa_name(isa)), threads_(threads), workspace_(workspace) {}

  // out = act(x W^T + bias) for `m` rows, plus what `out` holds if `add`.
  void linear(const Matrix& w, std::int64_t m, const Rows& x, const Rows& out,
              bool add = false) const;
  // ... plus `residual`, rows of out's dtype.
  void linear(const Matrix& w, std::int64_t m, const Rows& x, const Rows& out,
              const Rows& residual) const;
  void norm(NormKind kind, std::int64_t m, std::int64_t width, float eps, const Rows& x,
            const Rows& y, const float* weight) const;
  void norm(const Adaptive& a, std::int64_t m, std::int64_t width, float eps, const Rows& x,
            const Rows& y) const;

  Isa isa() const { return isa_; }
  const std::string& isa_text() const { return name_; }
  int threads() const { return threads_; }
  char* workspace() const { return workspace_; }

 private:
  Isa isa_;
  std::string name_;
  int threads_;
  char* workspace_;
};

// x += down(gated(n(x))): the second half of a layer.
void mlp_half(const Calls& calls, const ExpertLayer& layer, std::int64_t m, float eps,
              const Rows& x, const Rows& normed, const Rows& hidden);

// n(x) W^T: the first products of a layer, into the columns of q, k and v, or of k and v alone.
void qkv_half(const Calls& calls, const ExpertLayer& layer, const ModelSizes& s, std::int64_t m,
              bool kv_only, const Rows& x, const Rows& normed, const Rows& qkv);

// One expert's part of qkv_prep.
QkvExpert qkv_expert(const ExpertLayer& layer, const ModelSizes& s, const Rows& qkv,
                     const Rows& q_out, const std::int32_t* rows, std::int64_t begin,
                     std::int64_t count);

}  // namespace vlakern
