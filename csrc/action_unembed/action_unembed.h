// action_unembed: y = W2 relu(W1 n(h) + b1) + b2 over packed weights, without W1 y = W2 n(h) + b2;
// n is a final norm or nothing.
//
// Letters: N rows, M width, F hidden columns, A slots.
#pragma once

#include <optional>
#include <string>

#include "gated_mlp/gated_mlp.h"
#include "linear/linear.h"
#include "norm/norm.h"

namespace vlakern {

struct ActionUnembedTensors {
  Tensor h;                            // [N, M] fp32 or bf16, columns adjacent
  std::optional<NormTensors> norm;     // of h, into normed
  std::optional<Tensor> normed;        // [N, M] h's dtype, with norm
  std::optional<PackedTensors> first;  // F, M
  std::optional<Tensor> hidden;        // [N, F] fp32 or bf16, with first
  PackedTensors last;                  // A, F or M
  Tensor y;                            // [N, A] fp32 or bf16
  Tensor workspace;                    // the larger of the two passes'
};

struct ActionUnembedParams {
  std::optional<NormParams> norm;
  std::optional<LinearParams> first;
  LinearParams last;
};

ActionUnembedParams action_unembed_params(const ActionUnembedTensors& t, const std::string& kind,
                                          float eps, const std::string& isa, int threads);

void action_unembed_cpu(const ActionUnembedParams& p);

}  // namespace vlakern
