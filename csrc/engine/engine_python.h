// The Python face of the engine: weights and sizes by name, then calls without the lock.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "common/tensor_caster.h"
#include "common/thread_pool.h"
#include "engine/engine.h"
#include "gated_mlp/gated_mlp_python.h"

namespace vlakern::python {

// Weights by name, checked once.
class EngineModel {
 public:
  EngineModel(const std::map<std::string, double>& numbers,
              const std::map<std::string, std::string>& words,
              const std::map<std::string, Tensor>& tensors,
              const std::map<std::string, Packed>& matrices, const std::string& dtype,
              const std::string& isa, int threads)
      : isa_(select_isa(isa)), threads_(threads > 0 ? threads : default_threads()) {
    EngineWeights weights{tensors, {}};
    for (const auto& [name, w] : matrices) weights.matrices[name] = packed_tensors(w);
    model_ = engine_model(model_sizes(Facts(numbers, words)), weights, dtype, isa_, threads_);
  }

  std::int64_t bytes(std::int64_t views, std::int64_t documents, std::int64_t tokens,
                     std::int64_t rows) const {
    return vlakern::Engine::bytes(model_, {views, documents, tokens, rows});
  }

  vlakern::Engine engine(std::int64_t views, std::int64_t documents, std::int64_t tokens,
                         std::int64_t rows, std::uintptr_t memory) const {
    return {model_, {views, documents, tokens, rows}, isa_, threads_, memory};
  }

 private:
  static PackedTensors packed_tensors(const Packed& w) {
    return {std::get<0>(w), std::get<1>(w), std::get<2>(w),
            std::get<3>(w), std::get<4>(w), std::get<5>(w)};
  }

  vlakern::EngineModel model_;
  Isa isa_;
  int threads_;
};

class Engine {
 public:
  using Optional = std::optional<Tensor>;

  Engine(const EngineModel& model, std::int64_t views, std::int64_t documents, std::int64_t tokens,
         std::int64_t rows, std::uintptr_t memory)
      : engine_(model.engine(views, documents, tokens, rows, memory)) {}

  // (address, shape) of memory that Python reads or fills.
  auto patches(std::int64_t views) const { return place(engine_.patches(views)); }
  auto image_tokens(std::int64_t views) const { return place(engine_.image_tokens(views)); }

  void vision(std::int64_t views) const { engine_.vision(views); }
  void prefix(std::int64_t views, const Tensor& tokens, const Tensor& order, const Tensor& state,
              const Tensor& semantic_rows, const Tensor& action_rows, const Tensor& joint,
              const Tensor& positions, const Tensor& cu, const Tensor& kv_end,
              const Tensor& kv) const {
    engine_.prefix(
        {tokens, order, state, semantic_rows, action_rows, joint, positions, cu, kv_end, kv},
        views);
  }
  void integrate(const Tensor& x, const Tensor& prefix_index, const Tensor& cu_prefix,
                 const Tensor& kv, const Optional& frozen, const Optional& frozen_len,
                 const Optional& slot_mask) const {
    engine_.integrate({x, prefix_index, cu_prefix, kv, frozen, frozen_len, slot_mask, {}});
  }
  void integrate_guided(const Tensor& x, const Tensor& prefix_index, const Tensor& cu_prefix,
                        const Tensor& kv, const Optional& frozen, const Optional& frozen_len,
                        const Optional& slot_mask, const Tensor& decided, const Tensor& weights,
                        float most) const {
    engine_.integrate({x, prefix_index, cu_prefix, kv, frozen, frozen_len, slot_mask,
                       Guidance{decided, weights, most}});
  }
  void velocity(const Tensor& x, const Tensor& prefix_index, const Tensor& cu_prefix,
                const Tensor& kv, const Optional& frozen, const Optional& frozen_len,
                std::int64_t evaluation, const Tensor& velocity) const {
    engine_.velocity({x, prefix_index, cu_prefix, kv, frozen, frozen_len, {}, {}}, evaluation,
                     velocity);
  }

 private:
  static std::tuple<std::uintptr_t, std::int64_t> place(const Tensor& t) {
    std::int64_t count = dtype_size(t.dtype);
    for (int i = 0; i < t.rank; ++i) count *= t.shape[i];
    return {t.data, count};
  }

  vlakern::Engine engine_;
};

}  // namespace vlakern::python
