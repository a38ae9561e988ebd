// gated_mlp: out = (act(x Wg^T + bg) * (x Wu^T + bu)) Wd^T + bd + residual, as two passes over
// packed weights: gate and up together, then down.
//
// Letters: M rows, K inputs, F hidden columns, N outputs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "linear/linear.h"

namespace vlakern {

struct PackedTensors {
  Tensor panels;                  // int32, see linear.h
  std::optional<Tensor> w_scale;  // fp32, int8 alone
  std::optional<Tensor> bias;     // fp32
  std::int64_t n;
  std::int64_t k;
  std::string kind;
};

struct GatedMlpTensors {
  Tensor x;                        // [M, K] fp32 or bf16
  PackedTensors gate_up;           // N = 2 F, K
  PackedTensors down;              // N, K = F
  std::optional<Tensor> residual;  // [M, N] out's dtype; may be out itself
  Tensor hidden;                   // [M, F] fp32 or bf16
  Tensor out;                      // [M, N] fp32 or bf16
  Tensor workspace;                // the larger of the two passes'
};

struct GatedMlpParams {
  LinearParams gate_up;
  LinearParams down;
};

// Unpacks and checks as linear_params does.
GatedMlpParams gated_mlp_params(const GatedMlpTensors& t, const std::string& activation,
                                const std::string& isa, int threads);

void gated_mlp_cpu(const GatedMlpParams& p);

}  // namespace vlakern
