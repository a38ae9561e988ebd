// gated_mlp: out = (act(x Wg^T + bg) * (x Wu^T + bu)) Wd^T + bd + residual, as two passes over
// packed weights: gate and up together, then down.
//
// Letters: M rows, K inputs, F hidden columns, N outputs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "linear/linear.h"
#include "linear/linear_job.h"

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

// As phases of a larger job, see linear_job.h; without tensors the params are two products' that
// share a workspace, down.x being gate_up.out.
struct GatedMlpJob {
  LinearJob gate_up;
  LinearJob down;
};

struct GatedMlpPhases {
  LinearPhases gate_up;
  LinearPhases down;

  void reset(const GatedMlpJob& job) {
    gate_up.reset(job.gate_up);
    down.reset(job.down);
  }
};

inline GatedMlpJob gated_mlp_job(const GatedMlpParams& p) {
  return {linear_job(p.gate_up), linear_job(p.down)};
}

inline void gated_mlp_run(const GatedMlpJob& job, GatedMlpPhases& phases, int worker) {
  linear_run(job.gate_up, phases.gate_up, worker);
  linear_run(job.down, phases.down, worker);
}

}  // namespace vlakern
