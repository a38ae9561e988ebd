// The flow-matching ends of a training step. With noise z of every element of a row, drawn or
// given, times its slot's weight if there is one, action a and flow time tau:
//
//   flow_mix   x = fma(tau, a, (1 - tau) z), tau drawn or given
//   flow_loss  L_g = sum m (v - (a - z))^2 / (sum m + 1e-8) over the rows of group g,
//              loss = sum w_g L_g / sum w_g over the groups that occur
//   gradient   coefficient_g m (v - (a - z)), coefficient_g = 2 w_g / (sum w (sum m + 1e-8))
//
// Elements with m = 0 do not count, whatever their values. Element e = h A + a of a row is word
// e / 16 % 4 of block 16 (e / 64) + e % 16 of common/philox.h in stream 0; tau is in block 0 of
// stream 1. Errors are fp32, their sums double, in an order that depends on the shapes alone.
//
// Letters: R rows, S rows per sample, B = R / S samples, H positions, A slots, T = 1 or H, G
// groups.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/tensor.h"

namespace vlakern {

// What the faces share.
struct FlowTensors {
  Tensor action;                // [B, H, A] fp32
  std::optional<Tensor> noise;  // [R, H, A] fp32; drawn without it
  std::optional<Tensor> rows;   // [R] int64: the row's address; its index without it
  std::optional<Tensor> slots;  // [B, A] fp32
  std::int64_t seed;
};

enum class TauLaw : int { kUniform, kBeta, kLogitNormal };

struct FlowTau {
  TauLaw law;
  double alpha;
  double s;
};

struct FlowMixTensors {
  std::optional<Tensor> tau;  // [R, T] fp32; drawn without it
  Tensor x_out;               // [R, H, A] fp32, bf16 or fp16
  Tensor tau_out;             // [R, T] fp32
};

struct FlowLossTensors {
  Tensor velocity;                 // [R, H, A] fp32, bf16 or fp16
  std::optional<Tensor> mask;      // [B, H, A] fp32 or uint8
  std::optional<Tensor> group;     // [B] int32 below G
  std::optional<Tensor> weights;   // [G] fp32, 1 without it; read by the loss
  Tensor coefficients;             // [G] fp32, written by the loss, read by the gradient
  std::optional<Tensor> loss;      // [1] fp32, written by the loss
  std::optional<Tensor> gradient;  // [R, H, A] velocity's dtype, written by the gradient
};

// What the driver reads; null pointers stand for absent arguments. Strides are in elements.
struct FlowParams {
  const float* action;        // [B, H, A]
  const float* noise;         // [R, H, A] or null
  const std::int64_t* rows;   // [R] or null
  const float* slots;         // [B, A] or null
  const float* tau;           // [R, T] or null
  float* tau_out;             // [R, T]
  const void* velocity;       // [R, H, A]
  const void* mask;           // [B, H, A] or null
  const std::int32_t* group;  // [B] or null
  const float* weights;       // [G] or null
  float* coefficients;        // [G]
  float* loss;                // [1]
  void* out;                  // [R, H, A]: x or the gradient
  std::int64_t action_stride[3];
  std::int64_t noise_stride[3];
  std::int64_t velocity_stride[3];
  std::int64_t mask_stride[3];
  std::int64_t out_stride[3];
  std::int64_t slots_stride[2];
  std::int64_t tau_stride[2];
  std::int64_t tau_out_stride[2];
  std::int64_t rows_stride;
  std::int64_t group_stride;
  std::int64_t weights_stride;
  std::int64_t coefficients_stride;
  std::int64_t row_count;    // R
  std::int64_t samples;      // B
  std::int64_t per_sample;   // S
  std::int64_t positions;    // H
  std::int64_t slot_count;   // A
  std::int64_t tau_columns;  // T
  std::int64_t groups;       // G
  std::uint64_t seed;
  FlowTau law;
  DType dtype;  // of x, or of velocity and gradient
  bool mask_is_u8;
};

// Unpack and check; InputError names the argument, what was expected and what was found.
FlowParams flow_mix_params(const FlowTensors& t, const FlowMixTensors& mix, const FlowTau& law);
FlowParams flow_loss_params(const FlowTensors& t, const FlowLossTensors& loss);

// `isa` forces an instruction set unless empty; `threads` 0 means every core of this process.
void flow_mix_cpu(const FlowParams& p, const std::string& isa, int threads);

// Writes the loss and the coefficients.
void flow_loss_cpu(const FlowParams& p, const std::string& isa, int threads);

// `scale` times the gradient of the loss, from the coefficients that flow_loss_cpu found.
void flow_loss_gradient_cpu(const FlowParams& p, float scale, const std::string& isa, int threads);

}  // namespace vlakern
