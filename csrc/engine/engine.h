// The CPU engine: images to image tokens, prefixes to keys and values, noise to actions.
//
// Each of the three calls is one native call over fixed memory. The residual stream is fp32; what
// products take is rounded as their weights are. Letters: V views, R documents (prefixes), T joint
// rows of all prefixes, E rows of the semantic expert, L text tokens, N action chunks, H positions
// of a chunk, A slots, G key-value heads, D head dim.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/tensor.h"
#include "engine/engine_buffers.h"
#include "engine/engine_model.h"

namespace vlakern {

// int32 but for the state. T joint rows are the semantic rows and one state row per document, where
// the action expert owns the states.
struct PrefixInput {
  Tensor tokens;          // [L] ids of all text tokens
  Tensor semantic_order;  // [E] row of [text | image tokens | states] for each semantic row
  Tensor state;           // [R, state] fp32
  Tensor semantic_rows;   // [E] joint row of each
  Tensor action_rows;     // [R], or none
  Tensor order;           // [T] row of [semantic | action] rows for each joint row
  Tensor positions;       // [T]
  Tensor cu;              // [R + 1]
  Tensor kv_end;          // [T]
  Tensor kv;              // [layers, 2, >= T, G D], written
};

// What a chunk is led to, by the masked error itself (arXiv 2506.07339, no Jacobian).
struct Guidance {
  Tensor decided;  // [N, H, A] fp32
  Tensor weights;  // [N, H, A] fp32; where 0, decided is not read
  float most = 0;  // beta, the most that the correction is multiplied by
};

struct IntegrateInput {
  Tensor x;                          // [N, H, A] fp32: noise, becomes the actions
  Tensor prefix_index;               // [N] int32
  Tensor cu_prefix;                  // [R + 1] int32
  Tensor kv;                         // [layers, 2, >= T, G D]
  std::optional<Tensor> frozen;      // [N, H, A] fp32
  std::optional<Tensor> frozen_len;  // [N] int32, with frozen
  std::optional<Tensor> slot_mask;   // [N, A] uint8
  std::optional<Guidance> guidance;
};

class Engine {
 public:
  // `memory` of bytes(...) on a cache line stays the caller's, as do the weights.
  Engine(EngineModel model, const EngineLimits& limits, Isa isa, int threads,
         std::uintptr_t memory);

  static std::int64_t bytes(const EngineModel& model, const EngineLimits& limits);

  // Where patches of `views` images go: [V, patches, 3 P P], or [V, pixels, 3] before a stem.
  Tensor patches(std::int64_t views) const;
  // Where image tokens are after vision(): [V * tokens, semantic hidden] fp32.
  Tensor image_tokens(std::int64_t views) const;

  void vision(std::int64_t views) const;
  void prefix(const PrefixInput& in, std::int64_t views) const;
  void integrate(const IntegrateInput& in) const;
  // dx/dtau [N, H, A] at in.x for one of the evaluations of the solver, into `velocity`.
  void velocity(const IntegrateInput& in, std::int64_t evaluation, const Tensor& velocity) const;

  const EngineModel& model() const { return model_; }
  const EngineLimits& limits() const { return limits_; }

 private:
  Tensor lse_of(std::int64_t rows) const;
  void check_kv(const Tensor& kv, std::int64_t tokens) const;
  Tensor layer_of(const Tensor& kv, std::int64_t layer, std::int64_t which,
                  std::int64_t tokens) const;
  // Its list of experts is empty; the memory is the calling thread's.
  QkvPrepParams& prep_params(std::int64_t tokens, const Tensor& k, const Tensor& v) const;
  void embed_view(std::int64_t view) const;
  void connect(std::int64_t views) const;
  void check(const PrefixInput& in, std::int64_t views) const;
  void embed_prefix(const PrefixInput& in, std::int64_t views) const;
  void embed_states(const PrefixInput& in) const;
  void prefix_layer(const PrefixInput& in, std::int64_t layer) const;
  void check(const IntegrateInput& in) const;
  void place_actions(const IntegrateInput& in) const;
  void embed_actions(const IntegrateInput& in, const float* x, std::int64_t evaluation) const;
  std::optional<Tensor> packed_prefix(const Tensor& k, const Tensor& v, const Tensor& cu,
                                      std::int64_t layer, bool first) const;
  void action_norm(const IntegrateInput& in, std::int64_t evaluation, std::int64_t norm) const;
  void action_attention(const IntegrateInput& in, std::int64_t layer, bool first) const;
  void action_layer(const IntegrateInput& in, std::int64_t evaluation, std::int64_t layer,
                    bool first) const;
  // `alone`: not one of an integration's evaluations, the first of which packs the prefixes.
  void evaluate(const IntegrateInput& in, const float* x, std::int64_t evaluation, bool alone,
                float* velocity) const;

  EngineModel model_;
  EngineLimits limits_;
  EngineBuffers at_;
  std::string isa_name_;
  Isa isa_;
  int threads_;
};

}  // namespace vlakern
