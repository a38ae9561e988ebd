// The weights of a policy network, folded and packed for the engine as vlakern/infer/packing.py
// does it: weights of norms go into the product that follows but in bf16, residual scales into the
// one before.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "policy/config.h"
#include "policy/pack_matrix.h"

namespace vlakern {

// Weights by the engine's names, and the memory that they lie in.
struct PackedModel {
  EngineWeights weights;
  std::deque<Block> memory;
};

// `dtype` is fp32, bf16 or int8, of the large products. `positions`: those of the prefix and chunk.
// InputError: a tensor is missing, unknown, misshapen or not finite.
PackedModel pack_model(const ModelConfig& model, const std::string& path, const std::string& dtype,
                       std::int64_t positions, int threads);

}  // namespace vlakern
