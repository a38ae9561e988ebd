// qkv_prep: per head n = x / sqrt(mean(x^2) + eps) * w (no norm without weights), then RoPE on the
// pairs (i, i + D/2), a cast, and the write: q stays in its expert's rows, k and v go to the
// joint rows of its tokens.
//
// Arithmetic is fp32: y_low = r * fma(low, w_low * cos, high * (w_high * -sin)) and alike for
// y_high, with r the reciprocal root; rounded once. Sums run in an order that depends on the shapes
// alone (vec_sum.h; weight gradients per token, per run of tokens, per expert), so every
// instruction set and thread count gives the same bits. Letters: E rows of one expert, T joint
// rows, S rows of the outputs k and v, H query heads, G key-value heads, D head dim, N runs of
// tokens.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/cpu_features.h"
#include "common/tensor.h"

namespace vlakern {

// Elements of a head are adjacent. Floating dtypes: fp32, bf16 or fp16.
struct QkvExpertTensors {
  Tensor q;                        // [E, H, D]
  Tensor k;                        // [E, G, D] q's dtype
  Tensor v;                        // [E, G, D] q's dtype
  Tensor rows;                     // [E] int32
  std::optional<Tensor> q_weight;  // [D]
  std::optional<Tensor> k_weight;  // [D], with q_weight
};

// A [rows, heads, D] tensor.
struct QkvMatrix {
  char* data;
  std::int64_t row_stride;   // [bytes]
  std::int64_t head_stride;  // [elements]
  char* row(std::int64_t r) const { return data + r * row_stride; }
};

struct QkvWeight {
  const void* data;  // [D] or null
  DType dtype;
};

struct QkvExpert {
  QkvMatrix q;               // [E, H, D]
  QkvMatrix k;               // [E, G, D]
  QkvMatrix v;               // [E, G, D]
  QkvMatrix q_out;           // [E, H, D]
  const std::int32_t* rows;  // [E]
  std::int64_t rows_stride;
  QkvWeight q_weight;
  QkvWeight k_weight;
  std::int64_t begin;  // first of its tokens, counted over all experts
  std::int64_t end;
};

struct QkvPrepParams {
  std::vector<QkvExpert> experts;
  const float* cos;  // [T, D / 2]
  const float* sin;  // [T, D / 2]
  std::int64_t cos_stride;
  std::int64_t sin_stride;
  QkvMatrix k_out;  // [S, G, D]
  QkvMatrix v_out;  // [S, G, D]
  std::int64_t row_offset;
  std::int64_t tokens;  // of all experts
  std::int64_t angles;  // T
  std::int64_t out_rows;
  std::int64_t heads;
  std::int64_t groups;
  std::int64_t half;  // D / 2
  DType in;
  DType out;
  float eps;
  bool plus_one;
};

struct QkvPrepTensors {
  std::vector<QkvExpertTensors> experts;
  std::vector<Tensor> q_outs;  // [E, H, D] of each expert
  Tensor cos;                  // [T, D / 2] fp32
  Tensor sin;                  // [T, D / 2] fp32
  Tensor k_out;                // [S, G, D] q_out's dtype
  Tensor v_out;                // [S, G, D] q_out's dtype
};

QkvPrepParams qkv_prep_params(const QkvPrepTensors& t, std::int64_t row_offset, float eps,
                              bool plus_one);

// InputError unless the experts' rows are together a permutation of [0, T).
void check_permutation(const QkvPrepParams& p);

// `threads` 0 means every core of this process.
void qkv_prep_cpu(const QkvPrepParams& p, Isa isa, int threads);

// What the backward call has beside the forward one's arguments, whose outputs are the given
// gradients of q, k and v here.
struct QkvGradientTensors {
  Tensor dq;                       // [E, H, D] q's dtype
  Tensor dk;                       // [E, G, D] q's dtype
  Tensor dv;                       // [E, G, D] q's dtype
  std::optional<Tensor> q_weight;  // [D] fp32, with q_weight
  std::optional<Tensor> k_weight;  // [D] fp32
  Tensor partial;                  // [N, 2, D] fp32 workspace, with weights
};

struct QkvGradient {
  QkvMatrix dq;
  QkvMatrix dk;
  QkvMatrix dv;
  float* q_weight;  // [D] or null
  float* k_weight;  // [D] or null
  float* partial;   // [N, 2, D]
};

struct QkvPrepGradientParams {
  QkvPrepParams op;  // q_out, k_out and v_out are the given gradients
  std::vector<QkvGradient> experts;
  float* dcos;  // [T, D / 2] or null
  float* dsin;  // [T, D / 2], with dcos
};

QkvPrepGradientParams qkv_prep_gradient_params(const QkvPrepTensors& t,
                                               const std::vector<QkvGradientTensors>& g,
                                               const std::optional<Tensor>& dcos,
                                               const std::optional<Tensor>& dsin, float eps,
                                               bool plus_one);

// N: a run of tokens has 32 of them.
std::int64_t qkv_prep_runs(std::int64_t tokens);
constexpr std::int64_t kQkvRun = 32;

void qkv_prep_backward_cpu(const QkvPrepGradientParams& p, Isa isa, int threads);

}  // namespace vlakern
