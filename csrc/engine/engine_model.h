// The sizes of a policy network and its packed weights by name.
//
// Names: vision.{stem.i, patch, i.qkv, i.proj, i.fc1, i.fc2}, connector.{0, 1}, embed,
// semantic.i.{qkv, o, gate_up, down}, of the last layer `kv` alone; action.i.{qkv, o, gate_up,
// down}, where layers cross {q, cross_k, cross_v} for qkv; both experts' i.{q_norm, k_norm};
// state.{0, 1}, action_in.{first, last}, action_out.{first, last}; tensors vision.place, rope.cos,
// rope.sin and action_in.time or action.modulation. Residual scales and biases of norms are folded
// into the matrices next to them, and so are weights of norms but for those that come as tensors:
// vision.{i.norm1, i.norm2, final_norm}, connector.norm, i.{input_norm, post_norm} of both experts
// and action.norm. Linear edges have one matrix each: connector.0, state.0, action_in.first,
// action_out.last.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/cpu_features.h"
#include "gated_mlp/gated_mlp.h"
#include "linear/linear.h"
#include "qkv_prep/qkv_prep.h"

namespace vlakern {

struct VisionSizes {
  std::int64_t image, patch, hidden, layers, heads, mlp, shuffle;
  std::vector<std::int64_t> stem;  // widths of the stride-2 convolutions
  bool class_token;
  float eps;
  bool gelu_tanh;         // else the exact GELU
  bool final_norm;        // a LayerNorm after the last block
  bool linear_connector;  // one product, else two with a norm before and a GELU between

  std::int64_t stem_side() const { return image >> stem.size(); }  // of the stem's output [px]
  std::int64_t patch_side() const { return patch >> stem.size(); }
  std::int64_t channels() const { return stem.empty() ? 3 : stem.back(); }
  std::int64_t grid() const { return image / patch; }
  std::int64_t rows() const { return grid() * grid() + (class_token ? 1 : 0); }  // of one view
  std::int64_t tokens() const { return grid() / shuffle * (grid() / shuffle); }  // of one view
  std::int64_t joined() const { return hidden * shuffle * shuffle; }
};

struct ExpertSizes {
  std::int64_t hidden, mlp;
};

// Whose token the state is.
enum class StateOwner : int { kAction, kSemantic, kNone };

struct ModelSizes {
  VisionSizes vision;
  ExpertSizes semantic, action;
  std::int64_t layers, heads, groups, head_dim;
  std::int64_t vocab, state, slots, chunk, steps;
  std::string solver;  // euler, midpoint or heun
  bool causal_actions;
  float eps;
  bool qk_norm;
  bool gelu_gate;  // tanh GELU, else SiLU
  bool adaptive;   // the action expert's norms take scale, shift and gate from flow time
  StateOwner owner;
  bool linear_state, linear_out;
  std::int64_t cross_every;  // 0, or the actions see the prefix alone in every so manieth layer

  bool crosses(std::int64_t layer) const {
    return cross_every > 0 && (layer + 1) % cross_every == 0;
  }
  std::int64_t norms() const { return 2 * layers + 1; }  // of the action expert
  std::int64_t state_width() const {
    return owner == StateOwner::kSemantic ? semantic.hidden : action.hidden;
  }
  std::int64_t q_width() const { return heads * head_dim; }
  std::int64_t kv_width() const { return groups * head_dim; }
  std::int64_t qkv_width() const { return q_width() + 2 * kv_width(); }
};

// The most that one call brings.
struct EngineLimits {
  std::int64_t views;      // V, over all documents
  std::int64_t documents;  // R, prefixes
  std::int64_t tokens;     // T, joint rows over all documents
  std::int64_t rows;       // N, action chunks
};

// Numbers by name, as a file or another language gives them.
class Facts {
 public:
  Facts(std::map<std::string, double> numbers, std::map<std::string, std::string> words)
      : numbers_(std::move(numbers)), words_(std::move(words)) {}
  // InputError names what is missing or not a whole number from `least` on.
  std::int64_t count(const std::string& name, std::int64_t least = 1) const;
  float real(const std::string& name) const;
  const std::string& word(const std::string& name) const;

 private:
  double number(const std::string& name) const;
  std::map<std::string, double> numbers_;
  std::map<std::string, std::string> words_;
};

ModelSizes model_sizes(const Facts& facts);

struct EngineWeights {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, PackedTensors> matrices;
};

// A product with everything but its rows: x, out and residual are set per call.
using Matrix = LinearParams;

struct VisionLayer {
  Matrix qkv, proj, fc1, fc2;
  const float *norm1, *norm2;  // [hidden] or null, as every norm's weight: it is folded
};

struct ExpertLayer {
  Matrix qkv;  // of the semantic expert's last layer keys and values alone, q where layers cross
  std::optional<Matrix> kv;                // the last layer's, for prefixes
  std::optional<Matrix> o, gate_up, down;  // not in the semantic expert's last layer
  std::optional<Matrix> cross_k, cross_v;  // of the semantic expert's keys and values
  QkvWeight q_norm, k_norm;                // null without QK-norm
  const float *input_norm, *post_norm;     // [hidden] or null
};

struct EngineModel {
  ModelSizes sizes;
  DType dtype;  // of what the layers pass on: bf16, or fp32 with fp32 weights
  Isa isa;
  std::vector<Matrix> stem;
  Matrix patch;
  std::vector<VisionLayer> vision;
  const float* place;  // [rows of a view, hidden]: positions, the class token added to its own
  const float *final_norm, *connector_norm;  // [hidden] and [joined], or null
  Matrix connector;
  std::optional<Matrix> connector_last;
  Tensor embed;  // [vocab, semantic hidden] bf16 or fp32
  std::vector<ExpertLayer> semantic, action;
  std::optional<Matrix> state, state_last;
  Matrix action_in_first;
  std::optional<Matrix> action_in_last;  // not with adaptive norms
  const float* times;  // [evaluations + 1, action hidden]: of each evaluation, last that of tau 1
  const float* modulations;  // [evaluations + 1, norms, 3, action hidden]: scale, shift and gate
  std::int64_t evaluations;
  const float* action_norm;  // [action hidden] or null
  std::optional<Matrix> action_out_first;
  Matrix action_out_last;
  const float* cos;  // [positions, head_dim / 2]
  const float* sin;
  std::int64_t positions;
};

// Reads and checks; InputError names the weight that is missing or does not fit.
EngineModel engine_model(const ModelSizes& sizes, const EngineWeights& weights,
                         const std::string& dtype, Isa isa, int threads);

}  // namespace vlakern
