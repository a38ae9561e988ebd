#include "engine/engine_buffers.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "engine/engine_calls.h"
#include "shared_attention/shared_attention.h"

namespace vlakern {
namespace {

class Arena {
 public:
  explicit Arena(std::uintptr_t memory) : memory_(memory) {}

  template <class T>
  void take(T*& pointer, std::int64_t count, std::int64_t size = sizeof(T)) {
    pointer = reinterpret_cast<T*>(memory_ + static_cast<std::uintptr_t>(used_));
    used_ += (count * size + kLine - 1) / kLine * kLine;
    most_ = std::max(most_, used_);
  }
  std::int64_t mark() const { return used_; }
  // What was taken since `mark` is free again.
  void release(std::int64_t mark) { used_ = mark; }
  std::int64_t most() const { return most_; }

 private:
  std::uintptr_t memory_;
  std::int64_t used_ = 0;
  std::int64_t most_ = 0;
};

// The largest workspace over all rows up to `rows`: blocks make it jump, so each is asked.
std::int64_t workspace(const Matrix& w, std::int64_t rows) {
  std::int64_t most = 1;
  LinearParams p = w;
  for (p.m = 1; p.m <= rows; ++p.m) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      p.x_dtype = p.out_dtype = dtype;
      most = std::max(most, linear_workspace(p));
    }
  }
  return most;
}

class Workspaces {
 public:
  void add(const Matrix& w, std::int64_t rows) {
    const auto key = std::make_tuple(w.n, w.k, w.kind, w.activation, rows);
    if (std::find(seen_.begin(), seen_.end(), key) != seen_.end()) return;
    seen_.push_back(key);
    most_ = std::max(most_, workspace(w, rows));
  }
  void add(const std::optional<Matrix>& w, std::int64_t rows) {
    if (w) add(*w, rows);
  }
  std::int64_t most() const { return most_; }

 private:
  std::vector<std::tuple<std::int64_t, std::int64_t, LinearKind, Activation, std::int64_t>> seen_;
  std::int64_t most_ = 1;
};

void add_layers(Workspaces& all, const std::vector<ExpertLayer>& layers, std::int64_t rows) {
  for (const ExpertLayer& layer : layers) {
    all.add(layer.qkv, rows);
    all.add(layer.kv, rows);
    all.add(layer.o, rows);
    all.add(layer.gate_up, rows);
    all.add(layer.down, rows);
  }
}

std::int64_t most_workspace(const EngineModel& m, const EngineLimits& limits,
                            std::int64_t action_rows) {
  Workspaces all;
  const VisionSizes& v = m.sizes.vision;
  std::int64_t side = v.image;
  for (const Matrix& w : m.stem) {
    side /= 2;
    all.add(w, side * side);
  }
  all.add(m.patch, v.grid() * v.grid());
  for (const VisionLayer& layer : m.vision) {
    for (const Matrix* w : {&layer.qkv, &layer.proj, &layer.fc1, &layer.fc2}) {
      all.add(*w, limits.views * v.rows());
    }
  }
  all.add(m.connector, limits.views * v.tokens());
  all.add(m.connector_last, limits.views * v.tokens());
  add_layers(all, m.semantic, limits.tokens);
  add_layers(all, m.action, action_rows);
  for (const ExpertLayer& layer : m.action) {
    all.add(layer.cross_k, limits.tokens);
    all.add(layer.cross_v, limits.tokens);
  }
  all.add(m.state, action_rows);
  all.add(m.state_last, action_rows);
  all.add(m.action_in_first, action_rows);
  all.add(m.action_in_last, action_rows);
  all.add(m.action_out_first, action_rows);
  all.add(m.action_out_last, action_rows);
  return all.most();
}

void take_vision(Arena& arena, const EngineModel& m, const EngineLimits& limits, EngineBuffers& b) {
  const VisionSizes& v = m.sizes.vision;
  const std::int64_t rows = limits.views * v.rows(), tokens = limits.views * v.tokens();
  const int size = dtype_size(m.dtype);
  arena.take(b.vision_x, rows * v.hidden);
  arena.take(b.vision_normed, std::max(rows * v.hidden, tokens * v.joined()));
  arena.take(b.vision_qkv, rows * 3 * v.hidden, size);
  arena.take(b.vision_out, rows * v.hidden, size);
  arena.take(b.vision_hidden, std::max(rows * v.mlp, tokens * m.sizes.semantic.hidden), size);
  arena.take(b.vision_joined, tokens * v.joined());
  arena.take(b.vision_cu, limits.views + 1);
  arena.take(b.vision_kv_end, rows);
  std::int64_t side = v.image, channels = 3, planes = 0, gathered = 0;
  for (const std::int64_t width : v.stem) {
    side /= 2;
    gathered = std::max(gathered, side * side * 9 * channels);
    planes = std::max(planes, side * side * width);
    channels = width;
  }
  const std::int64_t patch = channels * v.patch_side() * v.patch_side();
  gathered = std::max(gathered, v.grid() * v.grid() * patch);
  for (char*& plane : b.stem) arena.take(plane, planes, size);
  arena.take(b.stem_rows, v.stem.empty() ? 0 : gathered, size);
}

// Of one layer's prefixes: one of all tokens has the most whole panels.
std::int64_t packed_bytes(const EngineModel& m, const EngineLimits& limits) {
  const ModelSizes& s = m.sizes;
  const std::int32_t ends[] = {0, static_cast<std::int32_t>(limits.tokens)};
  // Only the sizes are looked at.
  const Rows rows{const_cast<std::int32_t*>(ends), s.kv_width(), m.dtype};
  const Tensor k = heads_of(rows, limits.tokens, s.groups, s.head_dim);
  const auto [there, bytes] =
      shared_attention_prefix_bytes(k, vector_of(ends, 2, DType::kI32), isa_name(m.isa));
  return there ? (bytes + kLine - 1) / kLine * kLine : 0;
}

void take_layers(Arena& arena, const EngineModel& m, const EngineLimits& limits,
                 std::int64_t action_rows, EngineBuffers& b) {
  const ModelSizes& s = m.sizes;
  const std::int64_t tokens = limits.tokens, rows = std::max(tokens, action_rows);
  const int size = dtype_size(m.dtype);
  arena.take(b.semantic_x, tokens * s.semantic.hidden);
  arena.take(b.action_x, action_rows * s.action.hidden);
  arena.take(b.normed, std::max(tokens * s.semantic.hidden, action_rows * s.action.hidden));
  arena.take(b.semantic_qkv, tokens * s.qkv_width(), size);
  arena.take(b.action_qkv, action_rows * s.qkv_width(), size);
  arena.take(b.q, rows * s.q_width(), size);
  arena.take(b.out, rows * s.q_width(), size);
  arena.take(b.hidden,
             std::max({tokens * s.semantic.mlp, action_rows * s.action.mlp,
                       limits.documents * s.state_width(), action_rows * s.action.hidden}),
             size);
  arena.take(b.cos, rows * s.head_dim / 2);
  arena.take(b.sin, rows * s.head_dim / 2);
  const bool crosses = s.cross_every > 0;
  const std::int64_t own = crosses ? rows : action_rows, alone = crosses ? action_rows : 0;
  arena.take(b.own_k, own * s.kv_width(), size);
  arena.take(b.own_v, own * s.kv_width(), size);
  arena.take(b.alone_cos, alone * s.head_dim / 2);
  arena.take(b.alone_sin, alone * s.head_dim / 2);
  arena.take(b.alone_cu, crosses ? limits.rows + 1 : 0);
  arena.take(b.alone_kv_end, alone);
  const bool semantic_states = s.owner == StateOwner::kSemantic;
  arena.take(b.states, semantic_states ? limits.documents * s.semantic.hidden : 0);
  arena.take(b.added, s.adaptive ? action_rows * s.action.hidden : 0);
  arena.take(b.group, s.adaptive ? action_rows : 0);
  arena.take(b.packed, s.layers * b.packed_bytes);
  arena.take(b.time, action_rows * s.action.hidden);
  arena.take(b.embedded, action_rows * s.action.hidden);
  for (float*& velocity : b.velocity) arena.take(velocity, action_rows * s.slots);
  arena.take(b.stage_x, action_rows * s.slots);
  arena.take(b.tau, action_rows);
  arena.take(b.dtau, limits.rows);
  arena.take(b.rows, action_rows);
  arena.take(b.cu, limits.rows + 1);
  arena.take(b.kv_end, action_rows);
}

}  // namespace

EngineBuffers engine_buffers(const EngineModel& m, const EngineLimits& limits,
                             std::uintptr_t memory) {
  EngineBuffers b{};
  const VisionSizes& v = m.sizes.vision;
  const std::int64_t action_rows = std::max(limits.documents, limits.rows * m.sizes.chunk);
  const std::int64_t pixels =
      m.stem.empty() ? v.grid() * v.grid() * 3 * v.patch * v.patch : v.image * v.image * 3;
  Arena arena(memory);
  b.workspace_bytes = most_workspace(m, limits, action_rows);
  b.packed_bytes = packed_bytes(m, limits);
  arena.take(b.patches, limits.views * pixels, dtype_size(m.dtype));
  arena.take(b.image_tokens, limits.views * v.tokens() * m.sizes.semantic.hidden);
  arena.take(b.workspace, b.workspace_bytes);
  const std::int64_t rows = std::max(limits.tokens, action_rows);
  arena.take(b.lse, std::max(rows * m.sizes.heads, limits.views * v.rows() * v.heads));
  const std::int64_t shared = arena.mark();
  take_vision(arena, m, limits, b);
  arena.release(shared);
  take_layers(arena, m, limits, action_rows, b);
  b.bytes = arena.most();
  return b;
}

}  // namespace vlakern
