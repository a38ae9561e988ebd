#include "engine/engine_model.h"

#include <algorithm>
#include <cmath>

#include "common/error.h"

namespace vlakern {
namespace {

[[noreturn]] void fail(const std::string& message) { throw InputError("engine: " + message); }

std::string text(std::int64_t n) { return std::to_string(n); }

enum class Bias { kNo, kYes };

// Reads weights by name for one instruction set and number of threads.
class Reader {
 public:
  Reader(const EngineWeights& weights, Isa isa, int threads)
      : weights_(weights), isa_(isa), threads_(threads) {}

  Matrix matrix(const std::string& name, std::int64_t n, std::int64_t k, Bias bias,
                const char* activation = "none") const {
    const auto found = weights_.matrices.find(name);
    if (found == weights_.matrices.end()) fail("the weights lack the matrix " + name);
    const PackedTensors& w = found->second;
    if (w.n != n || w.k != k) {
      fail(name + " is [" + text(w.n) + ", " + text(w.k) + "], expected [" + text(n) + ", " +
           text(k) + "]");
    }
    Matrix p = linear_sizes(0, n, k, linear_kind(w.kind), activation_from_name(activation), isa_,
                            threads_);
    p.panels = reinterpret_cast<const char*>(
        vector(name, w.panels, DType::kI32, p.pairs * p.steps * kPair));
    if (w.w_scale.has_value() != (p.kind == LinearKind::kInt8)) {
      fail(name + ": int8 weights, and they alone, have scales");
    }
    if (w.w_scale) p.w_scale = floats(name + "'s scales", *w.w_scale, p.pairs * kPair);
    if (w.bias.has_value() != (bias == Bias::kYes)) {
      fail(name + (w.bias ? " has a bias, expected none" : " lacks its bias"));
    }
    if (w.bias) p.bias = floats(name + "'s bias", *w.bias, n);
    return p;
  }

  const Tensor& tensor(const std::string& name) const {
    const auto found = weights_.tensors.find(name);
    if (found == weights_.tensors.end()) fail("the weights lack " + name);
    return found->second;
  }

  // Rows of `width` adjacent fp32 numbers, at least `least` of them.
  const float* table(const std::string& name, std::int64_t width, std::int64_t least,
                     std::int64_t* rows = nullptr) const {
    const Tensor& t = tensor(name);
    Dims dims("engine");
    const std::string columns = text(width);
    dims.check(name.c_str(), t, {"rows", columns.c_str()}, {DType::kF32});
    if (t.shape[0] < least || (t.shape[0] > 1 && t.stride[0] != width)) {
      fail(name + " must be contiguous with at least " + text(least) + " rows, got " +
           text(t.shape[0]));
    }
    if (rows != nullptr) *rows = t.shape[0];
    return reinterpret_cast<const float*>(t.data);
  }

  QkvWeight head_norm(const std::string& name, std::int64_t width) const {
    const Tensor& t = tensor(name);
    Dims dims("engine");
    const std::string columns = text(width);
    dims.check(name.c_str(), t, {columns.c_str()}, {DType::kF32});
    return {reinterpret_cast<const void*>(t.data), t.dtype};
  }

  // Null where the weight is folded into the product that follows.
  const float* norm(const std::string& name, std::int64_t width) const {
    const auto found = weights_.tensors.find(name);
    return found == weights_.tensors.end() ? nullptr : floats(name, found->second, width);
  }

 private:
  static std::uintptr_t vector(const std::string& name, const Tensor& t, DType dtype,
                               std::int64_t count) {
    const bool fits = t.rank == 1 && t.dtype == dtype && t.shape[0] == count &&
                      (count < 2 || t.stride[0] == 1) && t.data % kLine % dtype_size(dtype) == 0;
    if (!fits) {
      fail(name + " must be " + text(count) + " adjacent " + dtype_name(dtype) + ", got " +
           dtype_name(t.dtype) + " of rank " + text(t.rank) + " and length " +
           text(t.rank == 1 ? t.shape[0] : 0));
    }
    return t.data;
  }

  static const float* floats(const std::string& name, const Tensor& t, std::int64_t count) {
    return reinterpret_cast<const float*>(vector(name, t, DType::kF32, count));
  }

  const EngineWeights& weights_;
  const Isa isa_;
  const int threads_;
};

ExpertLayer expert_layer(const Reader& read, const std::string& name, const ModelSizes& s,
                         const ExpertSizes& e, std::int64_t i, bool semantic) {
  ExpertLayer layer{};
  const bool last = i == s.layers - 1, kv_only = last && semantic;
  const std::int64_t kv = 2 * s.kv_width();
  if (s.crosses(i) && !semantic) {
    layer.qkv = read.matrix(name + ".q", s.q_width(), e.hidden, Bias::kNo);
    layer.cross_k = read.matrix(name + ".cross_k", s.kv_width(), s.kv_width(), Bias::kNo);
    layer.cross_v = read.matrix(name + ".cross_v", s.kv_width(), s.kv_width(), Bias::kNo);
  } else {
    layer.qkv = kv_only ? read.matrix(name + ".kv", kv, e.hidden, Bias::kNo)
                        : read.matrix(name + ".qkv", s.qkv_width(), e.hidden, Bias::kNo);
  }
  if (kv_only) layer.kv = layer.qkv;
  if (last && !semantic && s.owner == StateOwner::kAction) {
    layer.kv = read.matrix(name + ".kv", kv, e.hidden, Bias::kNo);
  }
  if (s.qk_norm) {
    layer.q_norm = read.head_norm(name + ".q_norm", s.head_dim);
    layer.k_norm = read.head_norm(name + ".k_norm", s.head_dim);
  }
  layer.input_norm = read.norm(name + ".input_norm", e.hidden);
  if (kv_only) return layer;
  layer.post_norm = read.norm(name + ".post_norm", e.hidden);
  layer.o = read.matrix(name + ".o", e.hidden, s.q_width(), Bias::kNo);
  layer.gate_up = read.matrix(name + ".gate_up", 2 * e.mlp, e.hidden, Bias::kNo,
                              s.gelu_gate ? "gelu_tanh_gate" : "silu_gate");
  layer.down = read.matrix(name + ".down", e.hidden, e.mlp, Bias::kNo);
  return layer;
}

void read_vision(const Reader& read, EngineModel& m) {
  const VisionSizes& v = m.sizes.vision;
  std::int64_t channels = 3;
  for (std::size_t i = 0; i < v.stem.size(); ++i) {
    m.stem.push_back(read.matrix("vision.stem." + text(static_cast<std::int64_t>(i)), v.stem[i],
                                 9 * channels, Bias::kYes, "relu"));
    channels = v.stem[i];
  }
  m.patch =
      read.matrix("vision.patch", v.hidden, channels * v.patch_side() * v.patch_side(), Bias::kYes);
  m.place = read.table("vision.place", v.hidden, v.rows());
  const char* gelu = v.gelu_tanh ? "gelu_tanh" : "gelu_erf";
  for (std::int64_t i = 0; i < v.layers; ++i) {
    const std::string name = "vision." + text(i);
    m.vision.push_back({read.matrix(name + ".qkv", 3 * v.hidden, v.hidden, Bias::kYes),
                        read.matrix(name + ".proj", v.hidden, v.hidden, Bias::kYes),
                        read.matrix(name + ".fc1", v.mlp, v.hidden, Bias::kYes, gelu),
                        read.matrix(name + ".fc2", v.hidden, v.mlp, Bias::kYes),
                        read.norm(name + ".norm1", v.hidden),
                        read.norm(name + ".norm2", v.hidden)});
  }
  m.final_norm = read.norm("vision.final_norm", v.hidden);
  m.connector_norm = read.norm("connector.norm", v.joined());
  const std::int64_t out = m.sizes.semantic.hidden;
  m.connector = read.matrix("connector.0", out, v.joined(), Bias::kYes,
                            v.linear_connector ? "none" : "gelu_erf");
  if (!v.linear_connector) m.connector_last = read.matrix("connector.1", out, out, Bias::kYes);
}

// From states and actions to tokens, and from tokens to velocities.
void read_edges(const Reader& read, EngineModel& m) {
  const ModelSizes& s = m.sizes;
  const std::int64_t hidden = s.action.hidden, owner = s.state_width();
  if (s.owner != StateOwner::kNone) {
    m.state = read.matrix("state.0", owner, s.state, Bias::kYes, s.linear_state ? "none" : "relu");
    if (!s.linear_state) m.state_last = read.matrix("state.1", owner, owner, Bias::kYes);
  }
  const std::int64_t times = m.evaluations + 1;
  if (s.adaptive) {
    m.action_in_first = read.matrix("action_in.first", hidden, s.slots, Bias::kYes);
    m.modulations = read.table("action.modulation", hidden, times * s.norms() * 3);
  } else {
    m.action_in_first = read.matrix("action_in.first", hidden, s.slots, Bias::kNo, "silu");
    m.action_in_last = read.matrix("action_in.last", hidden, hidden, Bias::kYes);
    m.times = read.table("action_in.time", hidden, times);
  }
  m.action_norm = read.norm("action.norm", hidden);
  if (!s.linear_out) {
    m.action_out_first = read.matrix("action_out.first", hidden, hidden, Bias::kYes, "relu");
  }
  m.action_out_last = read.matrix("action_out.last", s.slots, hidden, Bias::kYes);
}

std::int64_t evaluations(const ModelSizes& s) { return s.steps * (s.solver == "euler" ? 1 : 2); }

}  // namespace

double Facts::number(const std::string& name) const {
  const auto found = numbers_.find(name);
  if (found == numbers_.end()) fail("the sizes lack " + name);
  return found->second;
}

std::int64_t Facts::count(const std::string& name, std::int64_t least) const {
  const double value = number(name);
  if (!(value >= static_cast<double>(least)) || value > 1e12 || value != std::floor(value)) {
    fail(name + " is " + std::to_string(value) + ", expected a whole number from " + text(least));
  }
  return static_cast<std::int64_t>(value);
}

float Facts::real(const std::string& name) const { return static_cast<float>(number(name)); }

const std::string& Facts::word(const std::string& name) const {
  const auto found = words_.find(name);
  if (found == words_.end()) fail("the sizes lack " + name);
  return found->second;
}

ModelSizes model_sizes(const Facts& f) {
  ModelSizes s{};
  s.vision = {f.count("vision.image"),
              f.count("vision.patch"),
              f.count("vision.hidden"),
              f.count("vision.layers", 0),
              f.count("vision.heads"),
              f.count("vision.mlp"),
              f.count("vision.shuffle"),
              {},
              f.count("vision.class_token", 0) != 0,
              f.real("vision.eps"),
              f.count("vision.gelu_tanh", 0) != 0,
              f.count("vision.final_norm", 0) != 0,
              f.count("vision.linear", 0) != 0};
  const std::int64_t convolutions = f.count("vision.stem", 0);
  for (std::int64_t i = 0; i < convolutions; ++i) {
    s.vision.stem.push_back(f.count("vision.stem." + text(i)));
  }
  s.semantic = {f.count("semantic.hidden"), f.count("semantic.mlp")};
  s.action = {f.count("action.hidden"), f.count("action.mlp")};
  s.layers = f.count("layers");
  s.heads = f.count("heads");
  s.groups = f.count("groups");
  s.head_dim = f.count("head_dim");
  s.vocab = f.count("vocab");
  s.state = f.count("state");
  s.slots = f.count("slots");
  s.chunk = f.count("chunk");
  s.steps = f.count("steps");
  s.solver = f.word("solver");
  s.causal_actions = f.count("causal_actions", 0) != 0;
  s.eps = f.real("eps");
  s.qk_norm = f.count("qk_norm", 0) != 0;
  s.gelu_gate = f.count("gelu_gate", 0) != 0;
  s.adaptive = f.count("adaptive", 0) != 0;
  s.owner = static_cast<StateOwner>(std::min<std::int64_t>(f.count("state_owner", 0), 2));
  s.linear_state = f.count("linear_state", 0) != 0;
  s.linear_out = f.count("linear_out", 0) != 0;
  s.cross_every = f.count("cross_every", 0);
  if (s.owner == StateOwner::kAction && (s.adaptive || s.cross_every > 0)) {
    fail("with adaptive norms or layers that cross, the action expert has no state token");
  }
  if (s.qk_norm && s.cross_every > 0) fail("layers that cross have no QK-norm");
  if (s.vision.final_norm && !s.vision.linear_connector) {
    fail("a final norm of vision goes with a linear connector");
  }
  if (s.solver != "euler" && s.solver != "midpoint" && s.solver != "heun") {
    fail("the solver is " + s.solver + ", expected euler, midpoint or heun");
  }
  if (s.vision.hidden % s.vision.heads != 0 || s.heads % s.groups != 0 ||
      s.vision.image % s.vision.patch != 0 || s.vision.grid() % s.vision.shuffle != 0 ||
      s.vision.patch_side() << s.vision.stem.size() != s.vision.patch) {
    fail("heads, groups, patches or the pixel shuffle do not divide what they part");
  }
  return s;
}

EngineModel engine_model(const ModelSizes& s, const EngineWeights& weights,
                         const std::string& dtype, Isa isa, int threads) {
  const Reader read(weights, isa, threads);
  EngineModel m{};
  m.sizes = s;
  m.isa = isa;
  m.dtype = dtype == "fp32" ? DType::kF32 : DType::kBF16;
  read_vision(read, m);
  m.embed = read.tensor("embed");
  Dims dims("engine");
  const std::string vocab = text(s.vocab), width = text(s.semantic.hidden);
  dims.check("embed", m.embed, {vocab.c_str(), width.c_str()}, {DType::kF32, DType::kBF16});
  if (m.embed.stride[1] != 1) fail("embed must have adjacent columns");
  for (std::int64_t i = 0; i < s.layers; ++i) {
    m.semantic.push_back(expert_layer(read, "semantic." + text(i), s, s.semantic, i, true));
    m.action.push_back(expert_layer(read, "action." + text(i), s, s.action, i, false));
  }
  m.evaluations = evaluations(s);
  read_edges(read, m);
  m.cos = read.table("rope.cos", s.head_dim / 2, s.chunk + 1, &m.positions);
  m.sin = read.table("rope.sin", s.head_dim / 2, m.positions);
  return m;
}

}  // namespace vlakern
