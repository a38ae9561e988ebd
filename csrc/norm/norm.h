// norm: h = x + gate * residual and y = (w * n(h) + bias) * (1 + scale) + shift, where n is RMSNorm
// or LayerNorm over the last dimension and w is the weight, 1 + weight or 1.
//
// Arithmetic is fp32. h is rounded once to x's dtype, and y is computed from the rounded h:
// y = fma(n, a, c) with a = w * (1 + scale) and c = fma(bias, 1 + scale, shift), rounded once.
// Sums run in an order that depends on the shapes alone (vec_sum.h; partial sums of row runs), so
// every instruction set and thread count gives the same bits. Letters: R rows, M width, B groups
// of rows, S runs of rows per group, K kinds of sums (norm_sums).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/cpu_features.h"
#include "common/tensor.h"

namespace vlakern {

enum class NormKind : int { kRms, kRmsPlusOne, kLayer };

NormKind norm_kind(const std::string& name);

// The elements of a row are adjacent; rows may be apart. Floating dtypes: fp32, bf16 or fp16.
struct NormTensors {
  Tensor x;                         // [R, M]
  std::optional<Tensor> weight;     // [M]
  std::optional<Tensor> bias;       // [M]
  std::optional<Tensor> scale;      // [B, M]
  std::optional<Tensor> shift;      // [B, M]
  std::optional<Tensor> gate;       // [B, M]
  std::optional<Tensor> residual;   // [R, M]
  std::optional<Tensor> row_group;  // [R] int32
  Tensor y;                         // [R, M] x's dtype; may be x or residual
  std::optional<Tensor> h;          // [R, M] x's dtype, with a residual alone; may be either too
};

// One matrix, or one vector as a matrix whose rows are all the same.
struct NormMatrix {
  char* data;           // [R, M] or null
  std::int64_t stride;  // between rows [bytes]
  DType dtype;
  char* row(std::int64_t r) const { return data == nullptr ? nullptr : data + r * stride; }
};

struct NormParams {
  NormMatrix x;                   // [R, M]
  NormMatrix weight;              // [1, M] or null
  NormMatrix bias;                // [1, M] or null
  NormMatrix scale;               // [B, M] or null
  NormMatrix shift;               // [B, M] or null
  NormMatrix gate;                // [B, M] or null
  NormMatrix residual;            // [R, M] or null
  NormMatrix y;                   // [R, M]
  NormMatrix h;                   // [R, M] or null
  const std::int32_t* row_group;  // [R] or null: equal runs of rows
  std::int64_t row_group_stride;
  std::int64_t rows;    // R
  std::int64_t width;   // M
  std::int64_t groups;  // B
  NormKind kind;
  float eps;
};

NormParams norm_params(const NormTensors& t, const std::string& kind, float eps);

// `threads` 0 means every core of this process.
void norm_cpu(const NormParams& p, Isa isa, int threads);

// Tensors of the backward call beside those of the forward one, whose x is h here and whose y is
// not used. Null for what is not wanted.
struct NormGradientTensors {
  Tensor grad_y;                        // [R, M] x's dtype
  std::optional<Tensor> grad_h;         // [R, M] x's dtype
  Tensor grad_x;                        // [R, M] x's dtype
  std::optional<Tensor> grad_residual;  // [R, M] residual's dtype
  std::optional<Tensor> grad_weight;    // [M] fp32
  std::optional<Tensor> grad_bias;      // [M] fp32
  std::optional<Tensor> grad_scale;     // [B, M] fp32
  std::optional<Tensor> grad_shift;     // [B, M] fp32
  std::optional<Tensor> grad_gate;      // [B, M] fp32
  Tensor partial;                       // [K, B * S, M] fp32 workspace
};

struct NormGradientParams {
  NormParams op;         // x is h, y is dx
  NormMatrix dy;         // [R, M]
  NormMatrix dh;         // [R, M] or null
  NormMatrix dx;         // [R, M]
  NormMatrix dresidual;  // [R, M] or null
  NormMatrix dweight;    // [1, M] or null
  NormMatrix dbias;      // [1, M] or null
  NormMatrix dscale;     // [B, M] or null
  NormMatrix dshift;     // [B, M] or null
  NormMatrix dgate;      // [B, M] or null
  float* partial;        // [K, B * S, M]
  std::int64_t runs;     // S
};

NormGradientParams norm_gradient_params(const NormTensors& t, const NormGradientTensors& g,
                                        const std::string& kind, float eps);

// K: one kind of sum for weight and scale, one for bias and shift, one for gate, if they are there.
int norm_sums(bool factors, bool addends, bool gate);

// S: a run has at least some 32 rows, and a group at most 64 runs.
std::int64_t norm_runs(std::int64_t rows, std::int64_t groups);

void norm_backward_cpu(const NormGradientParams& p, Isa isa, int threads);

}  // namespace vlakern
