#include <algorithm>
#include <string>

#include "common/error.h"
#include "common/thread_pool.h"
#include "linear/linear.h"
#include "linear/linear_plan.h"

namespace vlakern {
namespace {

struct KindRow {
  const char* name;
  LinearKind kind;
};
constexpr KindRow kKinds[] = {
    {"bf16", LinearKind::kBF16}, {"fp32", LinearKind::kF32}, {"int8", LinearKind::kInt8}};

struct ActivationRow {
  const char* name;
  Activation activation;
};
constexpr ActivationRow kActivations[] = {{"none", Activation::kNone},
                                          {"silu", Activation::kSilu},
                                          {"gelu_erf", Activation::kGeluErf},
                                          {"gelu_tanh", Activation::kGeluTanh},
                                          {"relu", Activation::kRelu},
                                          {"silu_gate", Activation::kSiluGate},
                                          {"gelu_tanh_gate", Activation::kGeluTanhGate}};

std::string number(std::int64_t value) { return std::to_string(value); }

void check_adjacent(const Dims& dims, const char* name, const Tensor& t) {
  if (t.shape[0] > 0 && t.shape[1] > 1 && t.stride[1] != 1) {
    dims.fail(std::string(name) + " must have adjacent columns, got a stride of " +
              number(t.stride[1]) + "; make it contiguous");
  }
}

void check_length(const Dims& dims, const char* name, const Tensor& t, std::int64_t least) {
  if (t.shape[0] < least || (t.shape[0] > 1 && t.stride[0] != 1)) {
    dims.fail(std::string(name) + " must be contiguous and hold " + number(least) +
              " elements, got " + number(t.shape[0]) + " with stride " + number(t.stride[0]));
  }
}

void check_size(const Dims& dims, const char* name, std::int64_t found, std::int64_t expected) {
  if (found != expected) {
    dims.fail(std::string(name) + " is " + number(found) + ", the weights say " + number(expected));
  }
}

void check(const LinearTensors& t, const LinearParams& p) {
  Dims dims("linear");
  dims.check("x", t.x, {"M", "K"}, {DType::kF32, DType::kBF16});
  check_size(dims, "K of x", t.x.shape[1], p.k);
  check_adjacent(dims, "x", t.x);
  dims.check("weights", t.panels, {"W"}, {DType::kI32});
  check_length(dims, "weights", t.panels, 2 * p.pairs * p.steps * kPanel);
  if (t.w_scale.has_value() != (p.kind == LinearKind::kInt8)) {
    dims.fail("int8 weights, and they alone, take scales");
  }
  if (t.w_scale) {
    dims.check("w_scale", *t.w_scale, {"R"}, {DType::kF32});
    check_length(dims, "w_scale", *t.w_scale, p.pairs * kPair);
  }
  if (t.bias) {
    dims.check("bias", *t.bias, {"N"}, {DType::kF32});
    check_size(dims, "N of bias", t.bias->shape[0], p.n);
    check_length(dims, "bias", *t.bias, p.n);
  }
  if (t.row_scale) dims.check("row_scale", *t.row_scale, {"M"}, {DType::kF32});
  dims.check_output("out", t.out, {"M", "C"}, {DType::kF32, DType::kBF16});
  check_size(dims, "C of out", t.out.shape[1], p.columns);
  check_adjacent(dims, "out", t.out);
  if (t.residual) {
    dims.check("residual", *t.residual, {"M", "C"}, {t.out.dtype});
    check_adjacent(dims, "residual", *t.residual);
  }
}

}  // namespace

LinearKind linear_kind(const std::string& name) {
  for (const KindRow& row : kKinds) {
    if (name == row.name) return row.kind;
  }
  throw InputError("linear: weights must be bf16, fp32 or int8, got " + name);
}

Activation activation_from_name(const std::string& name) {
  for (const ActivationRow& row : kActivations) {
    if (name == row.name) return row.activation;
  }
  throw InputError("linear: activation " + name + " is not known");
}

LinearParams linear_sizes(std::int64_t m, std::int64_t n, std::int64_t k, LinearKind kind,
                          Activation activation, Isa isa, int threads) {
  LinearParams p{};
  p.kind = kind;
  p.activation = activation;
  const bool gated = is_gated(p.activation);
  if (m < 0 || n < 0 || k < 0 || (gated && n % 2 != 0)) {
    throw InputError(
        "linear: M, N and K must not be negative, and N of a gated activation even; "
        "got M " +
        number(m) + ", N " + number(n) + ", K " + number(k));
  }
  if (p.kind == LinearKind::kInt8 && k > kMostK) {
    throw UnsupportedError("linear: int8 sums hold K up to " + number(kMostK) + ", got " +
                           number(k));
  }
  p.m = m;
  p.n = n;
  p.k = k;
  p.columns = gated ? n / 2 : n;
  const int step = values_per_step(p.kind), width = gated ? kPanel : kPair;
  p.steps = (k + step - 1) / step;
  p.pairs = (p.columns + width - 1) / width;
  p.isa = isa;
  p.threads = threads > 0 ? threads : default_threads();
  return p;
}

std::int64_t linear_packed_words(const LinearParams& p, bool has_bias) {
  const std::int64_t rows = p.pairs * kPair;
  return rows * p.steps + (p.kind == LinearKind::kInt8 ? rows : 0) + (has_bias ? p.n : 0);
}

void linear_bind_weights(LinearParams& p, const void* packed, bool has_bias) {
  const auto* words = static_cast<const std::int32_t*>(packed);
  const std::int64_t rows = p.pairs * kPair;
  p.panels = reinterpret_cast<const char*>(words);
  words += rows * p.steps;
  p.w_scale = p.kind == LinearKind::kInt8 ? reinterpret_cast<const float*>(words) : nullptr;
  if (p.kind == LinearKind::kInt8) words += rows;
  p.bias = has_bias ? reinterpret_cast<const float*>(words) : nullptr;
}

LinearParams linear_params(const LinearTensors& t, std::int64_t n, std::int64_t k,
                           const std::string& kind, const std::string& activation,
                           const std::string& isa, int threads) {
  const std::int64_t m = t.x.rank == 2 ? t.x.shape[0] : 0;
  LinearParams p = linear_sizes(m, n, k, linear_kind(kind), activation_from_name(activation),
                                select_isa(isa), threads);
  check(t, p);
  p.x_dtype = t.x.dtype;
  p.out_dtype = t.out.dtype;
  Dims dims("linear");
  dims.check_output("workspace", t.workspace, {"B"}, {DType::kU8});
  check_length(dims, "workspace", t.workspace, linear_workspace(p));
  p.x = reinterpret_cast<const void*>(t.x.data);
  p.panels = reinterpret_cast<const char*>(t.panels.data);
  p.w_scale = t.w_scale ? reinterpret_cast<const float*>(t.w_scale->data) : nullptr;
  p.bias = t.bias ? reinterpret_cast<const float*>(t.bias->data) : nullptr;
  p.residual = t.residual ? reinterpret_cast<const void*>(t.residual->data) : nullptr;
  p.row_scale = t.row_scale ? reinterpret_cast<const float*>(t.row_scale->data) : nullptr;
  p.out = reinterpret_cast<void*>(t.out.data);
  p.workspace = reinterpret_cast<char*>(t.workspace.data);
  p.x_stride = t.x.stride[0];
  p.residual_stride = t.residual ? t.residual->stride[0] : 0;
  p.out_stride = t.out.stride[0];
  p.row_scale_stride = t.row_scale ? t.row_scale->stride[0] : 0;
  return p;
}

std::int64_t linear_workspace(std::int64_t m, std::int64_t n, std::int64_t k,
                              const std::string& kind, const std::string& activation,
                              const std::string& isa, int threads) {
  return linear_workspace(linear_sizes(m, n, k, linear_kind(kind), activation_from_name(activation),
                                       select_isa(isa), threads));
}

std::int64_t linear_workspace(const LinearParams& p) { return linear_plan(p).bytes; }

}  // namespace vlakern
