// Runs linear and gated_mlp without Python: under sanitizers, and for other processors in an
// emulator. Random problems from a fixed seed, every instruction set, one and three threads.
#include "linear/linear.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "common/cpu_features.h"
#include "common/error.h"
#include "gated_mlp/gated_mlp.h"
#include "linear/linear_limits.h"
#include "tests/array.h"

namespace {

using vlakern::DType;
using vlakern::tests::Array;

constexpr int kProblems = 150;
std::mt19937 random_bits(7);

int draw(int low, int high) {
  return low + static_cast<int>(random_bits() % static_cast<unsigned>(high - low + 1));
}

// Multiples of an eighth are exact in bf16, and their sums in fp32.
float value() { return static_cast<float>(draw(-16, 16)) / 8; }

Array matrix(DType dtype, std::int64_t rows, std::int64_t columns, std::int64_t gap) {
  Array a(dtype, {rows, columns}, {columns + gap, 1});
  for (std::int64_t i = 0; i < a.elements(); ++i) a.set(i, value());
  return a;
}

Array vector(std::int64_t count) {
  Array a(DType::kF32, {count}, {1});
  for (std::int64_t i = 0; i < a.elements(); ++i) a.set(i, value());
  return a;
}

struct Weights {
  std::int64_t n, k;
  std::string kind;
  bool gate;
  std::vector<float> rows;   // [N, K] as the kernels multiply them
  std::vector<float> scale;  // [N]
  Array panels, w_scale;

  std::int64_t half() const { return gate ? n / 2 : n; }
  // Where row r of the given order stands among the panels' rows.
  std::int64_t place(std::int64_t r) const {
    if (!gate) return r;
    const std::int64_t i = r % half();
    return i / vlakern::kPanel * vlakern::kPair + (r < half() ? 0 : vlakern::kPanel) +
           i % vlakern::kPanel;
  }
};

Weights make_weights(std::int64_t n, std::int64_t k, const std::string& kind, bool gate) {
  Weights w{n, k, kind, gate, {}, {}, {}, {}};
  const int g = vlakern::values_per_step(vlakern::linear_kind(kind));
  const std::int64_t steps = (k + g - 1) / g;
  const std::int64_t width = gate ? vlakern::kPanel : vlakern::kPair;
  const std::int64_t pairs = (w.half() + width - 1) / width;
  w.panels = Array(DType::kI32, {pairs * steps * vlakern::kPair}, {1});
  std::fill(w.panels.bytes.begin(), w.panels.bytes.end(), static_cast<unsigned char>(0));
  w.w_scale = vector(pairs * vlakern::kPair);
  w.rows.resize(static_cast<std::size_t>(n * k));
  w.scale.assign(static_cast<std::size_t>(n), 1.0f);
  for (std::int64_t r = 0; r < n; ++r) {
    const std::int64_t p = w.place(r);
    if (kind == "int8") w.scale[static_cast<std::size_t>(r)] = w.w_scale.get(p);
    for (std::int64_t c = 0; c < k; ++c) {
      const float x = kind == "int8" ? static_cast<float>(draw(-127, 127)) : value();
      w.rows[static_cast<std::size_t>(r * k + c)] = x;
      unsigned char* step =
          w.panels.bytes.data() +
          ((p / vlakern::kPair * steps + c / g) * vlakern::kPair + p % vlakern::kPair) * 4;
      if (kind == "int8") step[c % g] = static_cast<unsigned char>(x + 128);
      if (kind == "fp32") std::memcpy(step, &x, 4);
      const auto narrow = vlakern::from_float<vlakern::bf16>(x);
      if (kind == "bf16") std::memcpy(step + 2 * (c % g), &narrow, 2);
    }
  }
  return w;
}

double activate(const std::string& name, double z) {
  if (name == "silu") return z / (1 + std::exp(-z));
  if (name == "gelu_erf") return z * (1 + std::erf(z * std::sqrt(0.5))) / 2;
  if (name == "gelu_tanh") {
    const double u = 0.7978845608028654 * (z + 0.044715 * z * z * z);
    return z * (1 + std::tanh(u)) / 2;
  }
  return name == "relu" ? std::max(z, 0.0) : z;
}

struct Problem {
  Weights w;
  std::string activation;
  Array x, bias, residual, row_scale;
  bool has_bias, has_residual, has_row_scale;
  DType out_dtype;
  std::int64_t m, columns, gap;
};

Problem make_problem() {
  const char* kinds[] = {"bf16", "fp32", "int8"};
  const char* activations[] = {"none", "silu",      "gelu_erf",      "gelu_tanh",
                               "relu", "silu_gate", "gelu_tanh_gate"};
  const std::string activation = activations[draw(0, 6)], kind = kinds[draw(0, 2)];
  const bool gate = activation.size() > 5 && activation.rfind("_gate") == activation.size() - 5;
  const std::int64_t m = draw(0, 5) == 0 ? draw(30, 160) : draw(0, 30);
  const std::int64_t n = gate ? 2 * draw(0, 40) : draw(0, 80);
  const std::int64_t k = draw(0, 9) == 0 ? draw(1000, 9000) : draw(0, 300);
  Problem p{make_weights(n, k, kind, gate),
            activation,
            {},
            {},
            {},
            {},
            draw(0, 1) == 1,
            draw(0, 1) == 1,
            draw(0, 1) == 1,
            draw(0, 1) == 1 ? DType::kF32 : DType::kBF16,
            m,
            gate ? n / 2 : n,
            draw(0, 1) * draw(0, 9)};
  p.x = matrix(draw(0, 1) == 1 ? DType::kF32 : DType::kBF16, m, k, p.gap);
  p.bias = vector(n);
  p.residual = matrix(p.out_dtype, m, p.columns, p.gap);
  p.row_scale = vector(m);
  return p;
}

vlakern::LinearTensors tensors(const Problem& p, const Array& out, const Array& workspace) {
  vlakern::LinearTensors t{p.x.view, p.w.panels.view, {}, {}, {}, {}, out.view, workspace.view};
  if (p.w.kind == "int8") t.w_scale = p.w.w_scale.view;
  if (p.has_bias) t.bias = p.bias.view;
  if (p.has_residual) t.residual = p.residual.view;
  if (p.has_row_scale) t.row_scale = p.row_scale.view;
  return t;
}

Array run(const Problem& p, const std::string& isa, int threads) {
  Array out(p.out_dtype, {p.m, p.columns}, {p.columns + p.gap, 1});
  const auto& w = p.w;
  const std::int64_t size =
      vlakern::linear_workspace(p.m, w.n, w.k, w.kind, p.activation, isa, threads);
  const Array workspace(DType::kU8, {size}, {1});
  vlakern::linear_cpu(vlakern::linear_params(tensors(p, out, workspace), w.n, w.k, w.kind,
                                             p.activation, isa, threads));
  return out;
}

// Row m of (row_scale * x W^T) + bias in double.
std::vector<double> preactivations(const Problem& p, std::int64_t m) {
  std::vector<double> row(static_cast<std::size_t>(p.w.k)), z(static_cast<std::size_t>(p.w.n));
  float most = 0;
  const std::int64_t at = m * p.x.view.stride[0];
  for (std::int64_t k = 0; k < p.w.k; ++k) most = std::max(most, std::fabs(p.x.get(at + k)));
  const bool quantized = p.w.kind == "int8";
  const float inverse = most > 0 ? 127.0f / most : 0.0f, scale = most / 127.0f;
  for (std::int64_t k = 0; k < p.w.k; ++k) {
    const float x = p.x.get(at + k);
    row[static_cast<std::size_t>(k)] = quantized ? std::nearbyint(x * inverse) : x;
  }
  for (std::int64_t n = 0; n < p.w.n; ++n) {
    double sum = 0;
    for (std::int64_t k = 0; k < p.w.k; ++k) {
      sum += row[static_cast<std::size_t>(k)] * p.w.rows[static_cast<std::size_t>(n * p.w.k + k)];
    }
    if (quantized) sum *= double{scale} * p.w.scale[static_cast<std::size_t>(n)];
    if (p.has_row_scale) sum *= p.row_scale.get(m);
    z[static_cast<std::size_t>(n)] = p.has_bias ? sum + p.bias.get(n) : sum;
  }
  return z;
}

bool right(const Problem& p, const Array& out) {
  const double ulp = p.out_dtype == DType::kF32 ? 4e-6 : 8e-3;
  const std::string name = p.activation.substr(0, p.activation.rfind("_gate"));
  for (std::int64_t m = 0; m < p.m; ++m) {
    const std::vector<double> z = preactivations(p, m);
    for (std::int64_t c = 0; c < p.columns; ++c) {
      const auto i = static_cast<std::size_t>(c);
      double y = activate(name, z[i]);
      if (p.w.gate) y *= z[i + static_cast<std::size_t>(p.columns)];
      if (p.has_residual) y += p.residual.get(m * p.residual.view.stride[0] + c);
      const double found = out.get(m * out.view.stride[0] + c);
      const double size = 1 + std::fabs(y) + std::fabs(z[i]);
      // Written so that NaN, the poison, is wrong.
      if (!(std::fabs(found - y) <= ulp * size)) {
        std::printf("m=%d c=%d: %g, expected %g\n", int(m), int(c), found, y);
        return false;
      }
    }
  }
  return true;
}

bool holds(const Problem& p, int number) {
  for (const std::string& isa : vlakern::isas()) {
    const Array one = run(p, isa, 1), three = run(p, isa, 3);
    if (!right(p, one) || one.bytes != three.bytes) {
      std::printf("problem %d: %s M%d N%d K%d %s %s is wrong or depends on threads\n", number,
                  isa.c_str(), int(p.m), int(p.w.n), int(p.w.k), p.w.kind.c_str(),
                  p.activation.c_str());
      return false;
    }
  }
  return true;
}

// The layer is the two products, bit by bit.
bool mlp_holds() {
  Problem first = make_problem();
  first.w = make_weights(90, 70, "bf16", true);
  first.activation = "silu_gate";
  first.x = matrix(DType::kBF16, 19, 70, 0);
  first.m = 19;
  first.columns = 45;
  first.gap = 0;
  first.out_dtype = DType::kBF16;
  first.has_bias = first.has_residual = first.has_row_scale = false;
  Problem second = first;
  second.w = make_weights(33, 45, "bf16", false);
  second.activation = "none";
  second.columns = 33;
  second.x = run(first, "", 3);
  const Array expected = run(second, "", 3);
  const Array hidden(DType::kBF16, {19, 45}, {45, 1}), workspace(DType::kU8, {1 << 20}, {1});
  const Array out(DType::kBF16, {19, 33}, {33, 1});
  const vlakern::PackedTensors up{first.w.panels.view, {}, {}, 90, 70, "bf16"};
  const vlakern::PackedTensors down{second.w.panels.view, {}, {}, 33, 45, "bf16"};
  vlakern::gated_mlp_cpu(vlakern::gated_mlp_params(
      {first.x.view, up, down, {}, hidden.view, out.view, workspace.view}, "silu_gate", "", 3));
  return out.bytes == expected.bytes;
}

// Two products of the same x in one job of every worker, the second on x as the first packed it,
// over and over with the same phases: the bits of two calls.
bool job_holds() {
  for (int i = 0; i < 20; ++i) {
    Problem p = make_problem();
    while (p.w.gate || p.m == 0 || p.columns == 0 || p.w.k == 0) p = make_problem();
    p.has_residual = p.has_row_scale = p.has_bias = false;
    p.activation = "silu";
    const Array expected = run(p, "", 1);
    const std::int64_t words = p.w.panels.elements();
    std::vector<std::int32_t> packed(static_cast<std::size_t>(words + p.w.w_scale.elements()));
    std::memcpy(packed.data(), p.w.panels.bytes.data(), p.w.panels.bytes.size());
    std::memcpy(packed.data() + words, p.w.w_scale.bytes.data(), p.w.w_scale.bytes.size());
    vlakern::LinearParams a =
        vlakern::linear_sizes(p.m, p.w.n, p.w.k, vlakern::linear_kind(p.w.kind),
                              vlakern::Activation::kSilu, vlakern::select_isa(""), 3);
    if (p.w.kind != "int8") packed.resize(static_cast<std::size_t>(words));
    if (vlakern::linear_packed_words(a, false) != std::int64_t(packed.size())) return false;
    vlakern::linear_bind_weights(a, packed.data(), false);
    a.x_dtype = p.x.view.dtype;
    a.out_dtype = p.out_dtype;
    const Array one(p.out_dtype, {p.m, p.columns}, {p.columns + p.gap, 1});
    const Array two(p.out_dtype, {p.m, p.columns}, {p.columns + p.gap, 1});
    const Array workspace(DType::kU8, {vlakern::linear_workspace(a)}, {1});
    a.x = reinterpret_cast<const void*>(p.x.view.data);
    a.out = reinterpret_cast<void*>(one.view.data);
    a.workspace = reinterpret_cast<char*>(workspace.view.data);
    a.x_stride = p.x.view.stride[0];
    a.out_stride = one.view.stride[0];
    vlakern::LinearParams b = a;
    b.out = reinterpret_cast<void*>(two.view.data);
    b.x_is_packed = true;
    const vlakern::LinearJob first = vlakern::linear_job(a), second = vlakern::linear_job(b);
    vlakern::LinearPhases first_phases, second_phases;
    for (int turn = 0; turn < 3; ++turn) {
      first_phases.reset(first);
      second_phases.reset(second);
      vlakern::parallel_workers(3, [&](int worker) {
        vlakern::linear_run(first, first_phases, worker);
        vlakern::linear_run(second, second_phases, worker);
      });
      if (one.bytes != expected.bytes || two.bytes != expected.bytes) return false;
    }
  }
  return true;
}

bool refuses_short_weights() {
  Problem p = make_problem();
  p.w = make_weights(64, 8, "bf16", false);
  p.w.panels.view.shape[0] -= 1;
  p.activation = "none";
  p.x = matrix(DType::kF32, 2, 8, 0);
  p.m = 2;
  p.columns = 64;
  p.has_bias = p.has_residual = p.has_row_scale = false;
  try {
    run(p, "", 1);
  } catch (const vlakern::InputError&) {
    return true;
  }
  return false;
}

}  // namespace

int main() {
  for (int i = 0; i < kProblems; ++i) {
    if (!holds(make_problem(), i)) return 1;
  }
  if (!mlp_holds() || !job_holds() || !refuses_short_weights()) {
    std::printf("gated_mlp, a job of many products or a refusal is wrong\n");
    return 1;
  }
  std::printf("%d problems:", kProblems);
  for (const std::string& isa : vlakern::isas()) std::printf(" %s", isa.c_str());
  std::printf("\n");
  return vlakern::peak_rate("bf16", "", 2) >= 0 ? 0 : 1;
}
