#include <cmath>
#include <cstring>
#include <string>

#include "common/error.h"
#include "common/number.h"
#include "common/thread_pool.h"
#include "engine/engine.h"
#include "engine/engine_calls.h"
#include "shared_attention/shared_attention.h"

namespace vlakern {
namespace {

[[noreturn]] void fail(const std::string& message) { throw InputError("engine: " + message); }

const std::int32_t* ints(const Tensor& t) { return reinterpret_cast<const std::int32_t*>(t.data); }

void check_ints(Dims& dims, const char* name, const Tensor& t, const char* length) {
  dims.check(name, t, {length}, {DType::kI32});
  if (t.shape[0] > 1 && t.stride[0] != 1) fail(std::string(name) + " must be contiguous");
}

void check_range(const char* name, const Tensor& t, std::int64_t most) {
  for (std::int64_t i = 0; i < t.shape[0]; ++i) {
    if (ints(t)[i] >= 0 && ints(t)[i] < most) continue;
    fail(std::string(name) + " must be in [0, " + std::to_string(most) + "), got " +
         std::to_string(ints(t)[i]));
  }
}

// The rows of [rows, heads, D].
Rows rows_of(const Tensor& t) { return {reinterpret_cast<void*>(t.data), t.stride[0], t.dtype}; }

void copy_wide(const Tensor& table, std::int64_t row, std::int64_t width, float* out) {
  const char* from =
      reinterpret_cast<const char*>(table.data) + row * table.stride[0] * dtype_size(table.dtype);
  if (table.dtype == DType::kF32) {
    std::memcpy(out, from, static_cast<std::size_t>(width) * sizeof(float));
    return;
  }
  const bf16* halves = reinterpret_cast<const bf16*>(from);
  for (std::int64_t i = 0; i < width; ++i) out[i] = to_float(halves[i]);
}

}  // namespace

void Engine::check(const PrefixInput& in, std::int64_t views) const {
  const ModelSizes& s = model_.sizes;
  Dims dims("engine");
  const std::string state = std::to_string(s.state);
  check_ints(dims, "tokens", in.tokens, "L");
  check_ints(dims, "semantic_order", in.semantic_order, "E");
  dims.check("state", in.state, {"R", state.c_str()}, {DType::kF32});
  check_ints(dims, "semantic_rows", in.semantic_rows, "E");
  check_ints(dims, "action_rows", in.action_rows, "S");
  check_ints(dims, "order", in.order, "T");
  check_ints(dims, "positions", in.positions, "T");
  check_ints(dims, "cu", in.cu, "R + 1");
  check_ints(dims, "kv_end", in.kv_end, "T");
  if (dims["T"] > limits_.tokens || dims["R"] > limits_.documents) {
    fail("found " + std::to_string(dims["T"]) + " prefix tokens of " + std::to_string(dims["R"]) +
         " observations, built for at most " + std::to_string(limits_.tokens) + " of " +
         std::to_string(limits_.documents));
  }
  const std::int64_t states = s.owner == StateOwner::kAction ? dims["R"] : 0;
  if (dims["S"] != states || dims["E"] + states != dims["T"]) {
    fail("T must be the rows of both experts, with a state of each prefix for its owner");
  }
  if (in.state.shape[0] > 0 && in.state.stride[1] != 1) fail("state must have adjacent columns");
  check_range("tokens", in.tokens, s.vocab);
  const std::int64_t said = s.owner == StateOwner::kSemantic ? dims["R"] : 0;
  check_range("semantic_order", in.semantic_order,
              in.tokens.shape[0] + views * s.vision.tokens() + said);
  check_range("positions", in.positions, model_.positions);
}

// Text and image rows of the semantic expert, state rows of their owner, and all rows' angles.
void Engine::embed_prefix(const PrefixInput& in, std::int64_t views) const {
  const ModelSizes& s = model_.sizes;
  const std::int64_t text = in.tokens.shape[0], width = s.semantic.hidden;
  const std::int64_t images = views * s.vision.tokens();
  embed_states(in);
  parallel_for(threads_, in.semantic_order.shape[0], [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t from = ints(in.semantic_order)[row];
      float* x = at_.semantic_x + row * width;
      if (from < text) {
        copy_wide(model_.embed, ints(in.tokens)[from], width, x);
        continue;
      }
      const bool seen = from < text + images;
      const float* token = seen ? at_.image_tokens + (from - text) * width
                                : at_.states + (from - text - images) * width;
      std::memcpy(x, token, static_cast<std::size_t>(width) * sizeof(float));
    }
  });
  const std::int64_t half = s.head_dim / 2;
  for (std::int64_t row = 0; row < in.positions.shape[0]; ++row) {
    const std::int64_t position = ints(in.positions)[row];
    const auto bytes = static_cast<std::size_t>(half) * sizeof(float);
    std::memcpy(at_.cos + row * half, model_.cos + position * half, bytes);
    std::memcpy(at_.sin + row * half, model_.sin + position * half, bytes);
  }
}

void Engine::embed_states(const PrefixInput& in) const {
  if (!model_.state) return;
  const ModelSizes& s = model_.sizes;
  const Calls calls(isa_, threads_, at_.workspace);
  const std::int64_t states = in.state.shape[0], width = s.state_width();
  const Rows state{reinterpret_cast<void*>(in.state.data), in.state.stride[0], DType::kF32};
  const Rows hidden = rows_of(at_.hidden, width, model_.dtype);
  const Rows tokens = rows_of(s.owner == StateOwner::kSemantic ? at_.states : at_.action_x, width);
  calls.linear(*model_.state, states, state, model_.state_last ? hidden : tokens);
  if (model_.state_last) calls.linear(*model_.state_last, states, hidden, tokens);
}

void Engine::prefix_layer(const PrefixInput& in, std::int64_t layer) const {
  const ModelSizes& s = model_.sizes;
  const ExpertLayer& semantic = model_.semantic[static_cast<std::size_t>(layer)];
  const ExpertLayer& action = model_.action[static_cast<std::size_t>(layer)];
  const Calls calls(isa_, threads_, at_.workspace);
  const std::int64_t words = in.semantic_rows.shape[0], states = in.action_rows.shape[0];
  const std::int64_t tokens = words + states;
  // Nothing after the last layer's keys and values depends on the prefix's rows.
  const bool last = layer == s.layers - 1;
  const Rows x = rows_of(at_.semantic_x, s.semantic.hidden);
  const Rows state_x = rows_of(at_.action_x, s.action.hidden);
  const Rows normed = rows_of(at_.normed, s.semantic.hidden);
  const Rows state_normed = rows_of(at_.normed, s.action.hidden);
  const Rows qkv = rows_of(at_.semantic_qkv, s.qkv_width(), model_.dtype);
  const Rows state_qkv = rows_of(at_.action_qkv, s.qkv_width(), model_.dtype);
  const Rows q = rows_of(at_.q, s.q_width(), model_.dtype);
  const Rows out = rows_of(at_.out, s.q_width(), model_.dtype);
  qkv_half(calls, semantic, s, words, last, x, normed, qkv);
  if (states > 0) qkv_half(calls, action, s, states, last, state_x, state_normed, state_qkv);
  const Tensor seen_k = layer_of(in.kv, layer, 0, tokens),
               seen_v = layer_of(in.kv, layer, 1, tokens);
  const bool crosses = s.crosses(layer);
  const Rows own_k = rows_of(at_.own_k, s.kv_width(), model_.dtype);
  const Rows own_v = rows_of(at_.own_v, s.kv_width(), model_.dtype);
  const Tensor k = crosses ? heads_of(own_k, tokens, s.groups, s.head_dim) : seen_k;
  const Tensor v = crosses ? heads_of(own_v, tokens, s.groups, s.head_dim) : seen_v;
  QkvPrepParams& prep = prep_params(tokens, k, v);
  prep.experts.push_back(qkv_expert(semantic, s, qkv, q, ints(in.semantic_rows), 0, words));
  if (states > 0) {
    prep.experts.push_back(
        qkv_expert(action, s, state_qkv, q.from(words), ints(in.action_rows), words, states));
  }
  qkv_prep_cpu(prep, isa_, threads_);
  if (crosses) {
    calls.linear(*action.cross_k, tokens, own_k, rows_of(seen_k));
    calls.linear(*action.cross_v, tokens, own_v, rows_of(seen_v));
  }
  if (last) return;
  SharedAttentionTensors attention =
      attention_of(heads_of(q, tokens, s.heads, s.head_dim), k, v, in.cu, in.kv_end,
                   heads_of(out, tokens, s.heads, s.head_dim), lse_of(tokens));
  attention.rows = in.order;
  shared_attention_cpu(attention, 1.0f / std::sqrt(static_cast<float>(s.head_dim)), isa_name_,
                       threads_);
  calls.linear(*semantic.o, words, out, x, true);
  mlp_half(calls, semantic, words, s.eps, x, normed,
           rows_of(at_.hidden, s.semantic.mlp, model_.dtype));
  if (states == 0) return;
  calls.linear(*action.o, states, out.from(words), state_x, true);
  mlp_half(calls, action, states, s.eps, state_x, state_normed,
           rows_of(at_.hidden, s.action.mlp, model_.dtype));
}

void Engine::prefix(const PrefixInput& in, std::int64_t views) const {
  check(in, views);
  check_kv(in.kv, in.positions.shape[0]);
  embed_prefix(in, views);
  for (std::int64_t layer = 0; layer < model_.sizes.layers; ++layer) prefix_layer(in, layer);
}

}  // namespace vlakern
