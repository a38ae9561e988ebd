#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "action_embed/action_embed.h"
#include "common/error.h"
#include "engine/engine.h"
#include "engine/engine_calls.h"
#include "norm/norm.h"
#include "ode_step/ode_step.h"
#include "shared_attention/shared_attention.h"

namespace vlakern {
namespace {

struct Stage {
  OdeStepCoefficients c;
  bool ends_step;
  bool with_first;  // takes the step's first velocity, too
};

// Explicit Runge-Kutta methods of order 1, 2 and 2, as vlakern/flow/solver.py names them.
constexpr Stage kEuler[] = {{{0, 1, 1}, true, false}};
constexpr Stage kMidpoint[] = {{{0, 0.5f, 0.5f}, false, false}, {{0, 1, 1}, true, false}};
constexpr Stage kHeun[] = {{{0, 1, 1}, false, false}, {{0.5f, 0.5f, 1}, true, true}};

struct Solver {
  const Stage* stages;
  std::int64_t count;
};

Solver solver_of(const std::string& name) {
  if (name == "midpoint") return {kMidpoint, 2};
  if (name == "heun") return {kHeun, 2};
  return {kEuler, 1};
}

const std::int32_t* ints(const Tensor& t) { return reinterpret_cast<const std::int32_t*>(t.data); }

Tensor contiguous(const void* data, std::int64_t a, std::int64_t b, std::int64_t c) {
  return {reinterpret_cast<std::uintptr_t>(data), DType::kF32, 3, {a, b, c}, {b * c, c, 1}};
}

bool is_contiguous(const Tensor& t) {
  std::int64_t step = 1;
  for (int i = t.rank - 1; i >= 0; --i) {
    if (t.shape[i] > 1 && t.stride[i] != step) return false;
    step *= t.shape[i];
  }
  return true;
}

// v + min(beta, (1 - tau) / (tau r^2)) W (Y - x1) for x1 = x + (1 - tau) v, where v leads, and
// r^2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2): Eq. 2 to 4 with the identity as the Jacobian of x1.
void guide(const Guidance& g, const Tensor& at, const float* x, double tau, float* velocity) {
  const double left = 1 - tau;
  if (left <= 0) return;
  const auto most = static_cast<double>(g.most);
  const auto scale =
      static_cast<float>(tau > 0 ? std::min(most, (tau * tau + left * left) / (tau * left)) : most);
  const auto* decided = reinterpret_cast<const float*>(g.decided.data);
  const auto* weights = reinterpret_cast<const float*>(g.weights.data);
  const std::int64_t count = at.shape[0] * at.shape[1] * at.shape[2];
  for (std::int64_t i = 0; i < count; ++i) {
    if (weights[i] == 0) continue;
    const float error = decided[i] - (x[i] + static_cast<float>(left) * velocity[i]);
    velocity[i] += scale * weights[i] * error;
  }
}

}  // namespace

void Engine::check(const IntegrateInput& in) const {
  const ModelSizes& s = model_.sizes;
  Dims dims("engine");
  const std::string chunk = std::to_string(s.chunk), slots = std::to_string(s.slots);
  dims.check_output("x", in.x, {"N", chunk.c_str(), slots.c_str()}, {DType::kF32});
  if (!is_contiguous(in.x)) dims.fail("x must be contiguous");
  if (dims["N"] > limits_.rows) {
    dims.fail("found " + std::to_string(dims["N"]) + " chunks, built for at most " +
              std::to_string(limits_.rows));
  }
  dims.check("prefix_index", in.prefix_index, {"N"}, {DType::kI32});
  dims.check("cu_prefix", in.cu_prefix, {"R + 1"}, {DType::kI32});
  if (!is_contiguous(in.prefix_index) || !is_contiguous(in.cu_prefix)) {
    dims.fail("prefix_index and cu_prefix must be contiguous");
  }
  const std::int64_t prefixes = in.cu_prefix.shape[0] - 1;
  for (std::int64_t r = 0; r < prefixes; ++r) {
    if (ints(in.cu_prefix)[0] != 0 || ints(in.cu_prefix)[r + 1] < ints(in.cu_prefix)[r]) {
      dims.fail("cu_prefix must begin with 0 and not decrease");
    }
  }
  for (std::int64_t n = 0; n < dims["N"]; ++n) {
    const std::int64_t r = ints(in.prefix_index)[n];
    if (r < 0 || r >= prefixes) dims.fail("prefix_index leads to a prefix that is not there");
    const std::int64_t begin = ints(in.cu_prefix)[r + 1] - ints(in.cu_prefix)[r];
    if (begin + s.chunk > model_.positions) dims.fail("a prefix is longer than the positions");
  }
  if (in.guidance) {
    const Guidance& g = *in.guidance;
    dims.check("decided", g.decided, {"N", chunk.c_str(), slots.c_str()}, {DType::kF32});
    dims.check("weights", g.weights, {"N", chunk.c_str(), slots.c_str()}, {DType::kF32});
    if (!is_contiguous(g.decided) || !is_contiguous(g.weights)) {
      dims.fail("decided and weights must be contiguous");
    }
    if (!(g.most >= 0)) dims.fail("most_guidance must be 0 or more");
  }
  if (in.frozen.has_value() != in.frozen_len.has_value()) {
    dims.fail("frozen and frozen_len belong together");
  }
  if (!in.frozen) return;
  dims.check("frozen", *in.frozen, {"N", chunk.c_str(), slots.c_str()}, {DType::kF32});
  dims.check("frozen_len", *in.frozen_len, {"N"}, {DType::kI32});
  if (!is_contiguous(*in.frozen) || !is_contiguous(*in.frozen_len)) {
    dims.fail("frozen and frozen_len must be contiguous");
  }
  for (std::int64_t n = 0; n < dims["N"]; ++n) {
    const std::int64_t length = ints(*in.frozen_len)[n];
    if (length < 0 || length > s.chunk) dims.fail("frozen_len must be from 0 to the chunk length");
  }
}

// Rows, angles and visible ranges of the action tokens; x at frozen positions.
void Engine::place_actions(const IntegrateInput& in) const {
  const ModelSizes& s = model_.sizes;
  const std::int64_t chunks = in.x.shape[0], half = s.head_dim / 2;
  const auto bytes = static_cast<std::size_t>(half) * sizeof(float);
  for (std::int64_t n = 0; n < chunks; ++n) {
    const std::int32_t* cu = ints(in.cu_prefix) + ints(in.prefix_index)[n];
    at_.cu[n] = static_cast<std::int32_t>(n * s.chunk);
    at_.dtau[n] = 1.0f / static_cast<float>(s.steps);
    for (std::int64_t h = 0; h < s.chunk; ++h) {
      const std::int64_t row = n * s.chunk + h, position = cu[1] - cu[0] + h;
      at_.rows[row] = static_cast<std::int32_t>(row);
      at_.kv_end[row] =
          static_cast<std::int32_t>(cu[1] - cu[0] + (s.causal_actions ? h + 1 : s.chunk));
      at_.tau[row] = 0;
      std::memcpy(at_.cos + row * half, model_.cos + position * half, bytes);
      std::memcpy(at_.sin + row * half, model_.sin + position * half, bytes);
      if (s.adaptive) at_.group[row] = in.frozen && h < ints(*in.frozen_len)[n] ? 1 : 0;
      if (s.cross_every == 0) continue;
      at_.alone_kv_end[row] = cu[1] - cu[0];
      std::memcpy(at_.alone_cos + row * half, model_.cos + h * half, bytes);
      std::memcpy(at_.alone_sin + row * half, model_.sin + h * half, bytes);
    }
    if (s.cross_every > 0) at_.alone_cu[n] = at_.alone_cu[n + 1] = 0;
    if (!in.frozen) continue;
    const std::int64_t first = n * s.chunk * s.slots;
    const std::int64_t count = ints(*in.frozen_len)[n] * s.slots;
    std::memcpy(reinterpret_cast<float*>(in.x.data) + first,
                reinterpret_cast<const float*>(in.frozen->data) + first,
                static_cast<std::size_t>(count) * sizeof(float));
  }
  at_.cu[chunks] = static_cast<std::int32_t>(chunks * s.chunk);
}

// Frozen positions have tau 1 in every evaluation, so with them each row adds its own time.
void Engine::embed_actions(const IntegrateInput& in, const float* x,
                           std::int64_t evaluation) const {
  const ModelSizes& s = model_.sizes;
  const std::int64_t rows = in.x.shape[0] * s.chunk, width = s.action.hidden;
  if (s.adaptive) {
    const Rows slots = rows_of(const_cast<float*>(x), s.slots);
    Calls(isa_, threads_, at_.workspace)
        .linear(model_.action_in_first, rows, slots, rows_of(at_.action_x, width));
    return;
  }
  const float* time = model_.times + evaluation * width;
  ActionEmbedParams p{model_.action_in_first, model_.action_in_last, false};
  LinearParams& first = p.first;
  LinearParams& last = *p.last;
  first.m = last.m = rows;
  first.x = x;
  first.x_stride = s.slots;
  first.x_dtype = DType::kF32;
  first.out = at_.embedded;
  first.out_stride = width;
  first.out_dtype = model_.dtype;
  first.bias = time;
  if (in.frozen) {
    const float* done = model_.times + model_.evaluations * width;
    for (std::int64_t row = 0; row < rows; ++row) {
      const bool frozen = row % s.chunk < ints(*in.frozen_len)[row / s.chunk];
      std::memcpy(at_.time + row * width, frozen ? done : time,
                  static_cast<std::size_t>(width) * sizeof(float));
    }
    first.bias = nullptr;
    first.activation = Activation::kNone;
    first.out_dtype = DType::kF32;
    first.residual = at_.time;
    first.residual_stride = width;
    p.silu_pass = true;
  }
  last.x = first.out;
  last.x_stride = width;
  last.x_dtype = first.out_dtype;
  last.out = at_.action_x;
  last.out_stride = width;
  last.out_dtype = DType::kF32;
  first.workspace = last.workspace = at_.workspace;
  action_embed_cpu(p);
}

// The prefixes of layer `i` in the order in which attention reads them, packed when they are first
// needed; nothing where there is no such order or it would be used once.
std::optional<Tensor> Engine::packed_prefix(const Tensor& k, const Tensor& v, const Tensor& cu,
                                            std::int64_t i, bool first) const {
  if (at_.packed_bytes == 0 || model_.evaluations == 1) return {};
  const std::int64_t bytes = shared_attention_prefix_bytes(k, cu, isa_name_).second;
  if (bytes > at_.packed_bytes) {
    throw InputError("engine: the prefixes have more tokens than it is built for");
  }
  const Tensor packed = vector_of(at_.packed + i * at_.packed_bytes, bytes, DType::kU8);
  if (first) shared_attention_pack_prefix(k, v, cu, packed, isa_name_, threads_);
  return packed;
}

// Norm number `norm` of the action expert, after which its rows are in `normed`. An adaptive one
// first adds what the last half of a layer left in `added`.
void Engine::action_norm(const IntegrateInput& in, std::int64_t evaluation,
                         std::int64_t norm) const {
  const ModelSizes& s = model_.sizes;
  const Calls calls(isa_, threads_, at_.workspace);
  const std::int64_t rows = in.x.shape[0] * s.chunk, width = s.action.hidden;
  const Rows x = rows_of(at_.action_x, width), normed = rows_of(at_.normed, width);
  if (!s.adaptive) {
    const auto layer = static_cast<std::size_t>(norm / 2);
    const float* weight = norm == 2 * s.layers ? model_.action_norm
                          : norm % 2 == 0      ? model_.action[layer].input_norm
                                               : model_.action[layer].post_norm;
    calls.norm(NormKind::kRms, rows, width, s.eps, x, normed, weight);
    return;
  }
  const std::int64_t of_time = s.norms() * 3 * width;
  const float* scale = model_.modulations + evaluation * of_time + norm * 3 * width;
  const float* gate = norm == 0 ? nullptr : scale - width;  // the last part of the norm before
  calls.norm({scale, gate, at_.added, in.frozen ? at_.group : nullptr,
              (model_.evaluations - evaluation) * of_time},
             rows, width, s.eps, x, normed);
}

void Engine::action_attention(const IntegrateInput& in, std::int64_t i, bool first) const {
  const ModelSizes& s = model_.sizes;
  const bool crosses = s.crosses(i);
  const std::int64_t chunks = in.x.shape[0], rows = chunks * s.chunk, own = crosses ? 0 : rows;
  const Rows qkv = rows_of(at_.action_qkv, s.qkv_width(), model_.dtype);
  const Rows q = rows_of(at_.q, s.q_width(), model_.dtype);
  const Rows out = rows_of(at_.out, s.q_width(), model_.dtype);
  const Tensor k =
      heads_of(rows_of(at_.own_k, s.kv_width(), model_.dtype), own, s.groups, s.head_dim);
  const Tensor v =
      heads_of(rows_of(at_.own_v, s.kv_width(), model_.dtype), own, s.groups, s.head_dim);
  QkvPrepParams& prep = prep_params(rows, k, v);
  if (crosses) {
    prep.groups = 0;
    prep.cos = at_.alone_cos;
    prep.sin = at_.alone_sin;
  }
  const ExpertLayer& layer = model_.action[static_cast<std::size_t>(i)];
  prep.experts.push_back(qkv_expert(layer, s, qkv, q, at_.rows, 0, rows));
  qkv_prep_cpu(prep, isa_, threads_);
  const std::int64_t cached = ints(in.cu_prefix)[in.cu_prefix.shape[0] - 1];
  const Tensor prefix_k = layer_of(in.kv, i, 0, cached), prefix_v = layer_of(in.kv, i, 1, cached);
  const Tensor cu = vector_of(at_.cu, chunks + 1, DType::kI32);
  const Tensor ends = vector_of(crosses ? at_.alone_kv_end : at_.kv_end, rows, DType::kI32);
  SharedAttentionTensors attention =
      attention_of(heads_of(q, rows, s.heads, s.head_dim), k, v, cu, ends,
                   heads_of(out, rows, s.heads, s.head_dim), lse_of(rows));
  if (crosses) attention.cu_k = vector_of(at_.alone_cu, chunks + 1, DType::kI32);
  attention.cu_prefix = in.cu_prefix;
  attention.prefix_index = in.prefix_index;
  attention.prefix_k = prefix_k;
  attention.prefix_v = prefix_v;
  attention.packed = packed_prefix(prefix_k, prefix_v, in.cu_prefix, i, first);
  shared_attention_cpu(attention, 1.0f / std::sqrt(static_cast<float>(s.head_dim)), isa_name_,
                       threads_);
}

void Engine::action_layer(const IntegrateInput& in, std::int64_t evaluation, std::int64_t i,
                          bool first) const {
  const ModelSizes& s = model_.sizes;
  const ExpertLayer& layer = model_.action[static_cast<std::size_t>(i)];
  const Calls calls(isa_, threads_, at_.workspace);
  const std::int64_t rows = in.x.shape[0] * s.chunk;
  const Rows normed = rows_of(at_.normed, s.action.hidden);
  const Rows hidden = rows_of(at_.hidden, s.action.mlp, model_.dtype);
  // Adaptive norms add, since only they know the gate.
  const Rows sum = rows_of(s.adaptive ? at_.added : at_.action_x, s.action.hidden);
  action_norm(in, evaluation, 2 * i);
  calls.linear(layer.qkv, rows, normed, rows_of(at_.action_qkv, s.qkv_width(), model_.dtype));
  action_attention(in, i, first);
  calls.linear(*layer.o, rows, rows_of(at_.out, s.q_width(), model_.dtype), sum, !s.adaptive);
  action_norm(in, evaluation, 2 * i + 1);
  calls.linear(*layer.gate_up, rows, normed, hidden);
  calls.linear(*layer.down, rows, hidden, sum, !s.adaptive);
}

void Engine::evaluate(const IntegrateInput& in, const float* x, std::int64_t evaluation, bool alone,
                      float* velocity) const {
  const ModelSizes& s = model_.sizes;
  const std::int64_t rows = in.x.shape[0] * s.chunk, width = s.action.hidden;
  embed_actions(in, x, evaluation);
  for (std::int64_t i = 0; i < s.layers; ++i) {
    action_layer(in, evaluation, i, evaluation == 0 || alone);
  }
  const Calls calls(isa_, threads_, at_.workspace);
  const Rows hidden = rows_of(at_.hidden, width, model_.dtype);
  action_norm(in, evaluation, 2 * s.layers);
  Rows last = rows_of(at_.normed, width);
  if (model_.action_out_first) {
    calls.linear(*model_.action_out_first, rows, last, hidden);
    last = hidden;
  }
  calls.linear(model_.action_out_last, rows, last, rows_of(velocity, s.slots));
}

void Engine::velocity(const IntegrateInput& in, std::int64_t evaluation,
                      const Tensor& velocity) const {
  check(in);
  check_kv(in.kv, ints(in.cu_prefix)[in.cu_prefix.shape[0] - 1]);
  const bool same = velocity.rank == 3 && velocity.dtype == DType::kF32 &&
                    std::equal(velocity.shape, velocity.shape + 3, in.x.shape) &&
                    is_contiguous(velocity);
  if (!same) throw InputError("engine: velocity must be fp32, contiguous and of x's shape");
  if (evaluation < 0 || evaluation >= model_.evaluations) {
    throw InputError("engine: the solver has " + std::to_string(model_.evaluations) +
                     " evaluations, found " + std::to_string(evaluation));
  }
  place_actions(in);
  evaluate(in, reinterpret_cast<const float*>(in.x.data), evaluation, true,
           reinterpret_cast<float*>(velocity.data));
}

void Engine::integrate(const IntegrateInput& in) const {
  check(in);
  check_kv(in.kv, ints(in.cu_prefix)[in.cu_prefix.shape[0] - 1]);
  const ModelSizes& s = model_.sizes;
  const std::int64_t chunks = in.x.shape[0];
  if (chunks == 0) return;
  place_actions(in);
  const Solver solver = solver_of(s.solver);
  const Tensor stage_x = contiguous(at_.stage_x, chunks, s.chunk, s.slots);
  // Times are constants already; the update only moves its own copy of tau.
  const Tensor tau{reinterpret_cast<std::uintptr_t>(at_.tau), DType::kF32, 2, {chunks, 1}, {1, 1}};
  const Tensor dtau = vector_of(at_.dtau, chunks, DType::kF32);
  for (std::int64_t k = 0; k < s.steps; ++k) {
    const float* x = reinterpret_cast<const float*>(in.x.data);
    for (std::int64_t i = 0; i < solver.count; ++i) {
      const Stage& stage = solver.stages[i];
      evaluate(in, x, k * solver.count + i, false, at_.velocity[i]);
      if (in.guidance) {
        const double done = static_cast<double>(k) + (i > 0 ? solver.stages[i - 1].c.c_tau : 0.0f);
        guide(*in.guidance, in.x, x, done / static_cast<double>(s.steps), at_.velocity[i]);
      }
      std::optional<Tensor> first;
      if (stage.with_first) first = contiguous(at_.velocity[0], chunks, s.chunk, s.slots);
      ode_step_cpu({in.x, contiguous(at_.velocity[i], chunks, s.chunk, s.slots), first, tau, dtau,
                    in.frozen, in.frozen_len, in.slot_mask, stage.ends_step ? in.x : stage_x, tau},
                   false, stage.c, isa_name_, threads_);
      x = at_.stage_x;
    }
  }
}

}  // namespace vlakern
