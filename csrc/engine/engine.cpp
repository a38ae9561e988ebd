#include "engine/engine.h"

#include <utility>

#include "common/error.h"
#include "engine/engine_calls.h"

namespace vlakern {

Engine::Engine(EngineModel model, const EngineLimits& limits, Isa isa, int threads,
               std::uintptr_t memory)
    : model_(std::move(model)),
      limits_(limits),
      at_(engine_buffers(model_, limits, memory)),
      isa_name_(isa_name(isa)),
      isa_(isa),
      threads_(threads) {
  if (memory == 0 || memory % kLine != 0) {
    throw InputError("engine: memory must begin on a cache line of 64 bytes");
  }
}

std::int64_t Engine::bytes(const EngineModel& model, const EngineLimits& limits) {
  return engine_buffers(model, limits, 0).bytes;
}

Tensor Engine::patches(std::int64_t views) const {
  const VisionSizes& v = model_.sizes.vision;
  const bool stem = !model_.stem.empty();
  const std::int64_t rows = stem ? v.image * v.image : v.grid() * v.grid();
  const std::int64_t width = stem ? 3 : 3 * v.patch * v.patch;
  return {reinterpret_cast<std::uintptr_t>(at_.patches),
          model_.dtype,
          3,
          {views, rows, width},
          {rows * width, width, 1}};
}

Tensor Engine::image_tokens(std::int64_t views) const {
  const std::int64_t rows = views * model_.sizes.vision.tokens();
  const std::int64_t width = model_.sizes.semantic.hidden;
  return {reinterpret_cast<std::uintptr_t>(at_.image_tokens),
          DType::kF32,
          2,
          {rows, width},
          {width, 1}};
}

Tensor Engine::lse_of(std::int64_t rows) const {
  const std::int64_t heads = model_.sizes.heads;
  return {reinterpret_cast<std::uintptr_t>(at_.lse), DType::kF32, 2, {rows, heads}, {heads, 1}};
}

void Engine::check_kv(const Tensor& kv, std::int64_t tokens) const {
  const ModelSizes& s = model_.sizes;
  Dims dims("engine");
  const std::string layers = std::to_string(s.layers), width = std::to_string(s.kv_width());
  dims.check("kv", kv, {layers.c_str(), "2", "S", width.c_str()}, {model_.dtype});
  if (kv.shape[2] < tokens || (kv.shape[2] > 0 && kv.stride[3] != 1)) {
    dims.fail("kv must hold " + std::to_string(tokens) + " rows of adjacent elements");
  }
}

Tensor Engine::layer_of(const Tensor& kv, std::int64_t layer, std::int64_t which,
                        std::int64_t tokens) const {
  const std::int64_t offset = layer * kv.stride[0] + which * kv.stride[1];
  const Rows rows{reinterpret_cast<char*>(kv.data) + offset * dtype_size(kv.dtype), kv.stride[2],
                  kv.dtype};
  return heads_of(rows, tokens, model_.sizes.groups, model_.sizes.head_dim);
}

QkvPrepParams& Engine::prep_params(std::int64_t tokens, const Tensor& k, const Tensor& v) const {
  const ModelSizes& s = model_.sizes;
  thread_local QkvPrepParams p{};
  p.experts.clear();
  p.row_offset = 0;
  p.plus_one = false;
  p.cos = at_.cos;
  p.sin = at_.sin;
  p.cos_stride = p.sin_stride = p.half = s.head_dim / 2;
  p.k_out = {reinterpret_cast<char*>(k.data), k.stride[0] * dtype_size(k.dtype), k.stride[1]};
  p.v_out = {reinterpret_cast<char*>(v.data), v.stride[0] * dtype_size(v.dtype), v.stride[1]};
  p.tokens = p.angles = p.out_rows = tokens;
  p.heads = s.heads;
  p.groups = s.groups;
  p.in = p.out = model_.dtype;
  p.eps = s.eps;
  return p;
}

}  // namespace vlakern
