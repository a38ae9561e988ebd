// action_embed: y = W3 silu(Wf x + t) + b3 over packed weights, or y = W x + t alone. t is one row
// for all, a product's bias, or a row each, added to the product before a pass of SiLU.
//
// Letters: N rows, A slots, M width.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "gated_mlp/gated_mlp.h"
#include "linear/linear.h"

namespace vlakern {

struct ActionEmbedTensors {
  Tensor x;                           // [N, A] fp32 or bf16, columns adjacent
  PackedTensors first;                // M, A; its bias is t if that is one row
  std::optional<Tensor> time;         // [N, M], columns adjacent: t of each row
  std::optional<PackedTensors> last;  // M, M
  std::optional<Tensor> hidden;  // [N, M] with last: fp32 if t has rows, fp32 or bf16 otherwise
  Tensor y;                      // [N, M] fp32 or bf16
  Tensor workspace;              // the larger of the two passes'
};

struct ActionEmbedParams {
  LinearParams first;
  std::optional<LinearParams> last;
  bool silu_pass;  // over the rows of first.out
};

ActionEmbedParams action_embed_params(const ActionEmbedTensors& t, const std::string& isa,
                                      int threads);

void action_embed_cpu(const ActionEmbedParams& p);

}  // namespace vlakern
