#include <algorithm>

#include "common/error.h"
#include "norm/norm.h"

namespace vlakern {
namespace {

constexpr auto kFloats = {DType::kF32, DType::kBF16, DType::kF16};

NormMatrix matrix(const Dims& dims, const char* name, const std::optional<Tensor>& t) {
  if (!t) return {nullptr, 0, DType::kF32};
  const int last = t->rank - 1;
  if (t->shape[0] > 0 && t->shape[last] > 1 && t->stride[last] != 1) {
    dims.fail(std::string(name) + " must have adjacent elements in a row, got stride " +
              std::to_string(t->stride[last]));
  }
  const std::int64_t stride = last == 0 ? 0 : t->stride[0] * dtype_size(t->dtype);
  return {reinterpret_cast<char*>(t->data), stride, t->dtype};
}

void check(Dims& dims, const NormTensors& t, NormKind kind) {
  dims.check("x", t.x, {"R", "M"}, kFloats);
  if (dims["M"] == 0) dims.fail("x must have at least one column");
  if (t.weight) dims.check("weight", *t.weight, {"M"}, kFloats);
  if (t.bias) dims.check("bias", *t.bias, {"M"}, kFloats);
  if (t.bias && kind != NormKind::kLayer) dims.fail("only the kind layer takes a bias");
  if (t.scale) dims.check("scale", *t.scale, {"B", "M"}, kFloats);
  if (t.shift) dims.check("shift", *t.shift, {"B", "M"}, kFloats);
  if (t.gate) dims.check("gate", *t.gate, {"B", "M"}, kFloats);
  if (t.gate && !t.residual) dims.fail("gate scales a residual, and there is none");
  if (t.residual) dims.check("residual", *t.residual, {"R", "M"}, kFloats);
  if (t.row_group) dims.check("row_group", *t.row_group, {"R"}, {DType::kI32});
}

std::int64_t groups_of(const Dims& dims, const NormTensors& t) {
  const bool modulated = t.scale || t.shift || t.gate;
  const std::int64_t groups = modulated ? dims["B"] : 1;
  const std::int64_t rows = t.x.shape[0];
  if (!t.row_group && (groups == 0 || rows % groups != 0)) {
    dims.fail(std::to_string(rows) + " rows are not equal runs of " + std::to_string(groups) +
              " groups");
  }
  return groups;
}

}  // namespace

NormKind norm_kind(const std::string& name) {
  if (name == "rms") return NormKind::kRms;
  if (name == "rms_plus_one") return NormKind::kRmsPlusOne;
  if (name == "layer") return NormKind::kLayer;
  throw InputError("norm: kind must be rms, rms_plus_one or layer, got " + name);
}

NormParams norm_params(const NormTensors& t, const std::string& kind, float eps) {
  Dims dims("norm");
  NormParams p{};
  p.kind = norm_kind(kind);
  check(dims, t, p.kind);
  dims.check_output("y", t.y, {"R", "M"}, {t.x.dtype});
  if (t.h) dims.check_output("h", *t.h, {"R", "M"}, {t.x.dtype});
  p.x = matrix(dims, "x", t.x);
  p.weight = matrix(dims, "weight", t.weight);
  p.bias = matrix(dims, "bias", t.bias);
  p.scale = matrix(dims, "scale", t.scale);
  p.shift = matrix(dims, "shift", t.shift);
  p.gate = matrix(dims, "gate", t.gate);
  p.residual = matrix(dims, "residual", t.residual);
  p.y = matrix(dims, "y", t.y);
  p.h = matrix(dims, "h", t.h);
  if (t.row_group) {
    p.row_group = reinterpret_cast<const std::int32_t*>(t.row_group->data);
    p.row_group_stride = t.row_group->stride[0];
  }
  p.rows = t.x.shape[0];
  p.width = t.x.shape[1];
  p.groups = groups_of(dims, t);
  p.eps = eps;
  return p;
}

NormGradientParams norm_gradient_params(const NormTensors& t, const NormGradientTensors& g,
                                        const std::string& kind, float eps) {
  NormTensors forward = t;
  forward.y = g.grad_x;
  NormGradientParams p{norm_params(forward, kind, eps), {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, 0};
  Dims dims("norm_backward");
  const std::string rows = std::to_string(p.op.rows), width = std::to_string(p.op.width);
  const std::string groups = std::to_string(p.op.groups);
  const auto row_matrix = [&](const char* name, const std::optional<Tensor>& one, DType dtype) {
    if (one) dims.check(name, *one, {rows.c_str(), width.c_str()}, {dtype});
    return matrix(dims, name, one);
  };
  const auto sums = [&](const char* name, const std::optional<Tensor>& one, const char* size) {
    if (one && size == nullptr) dims.check_output(name, *one, {width.c_str()}, {DType::kF32});
    if (one && size) dims.check_output(name, *one, {size, width.c_str()}, {DType::kF32});
    return matrix(dims, name, one);
  };
  if (g.grad_residual && !t.residual) dims.fail("grad_residual without a residual");
  if (g.grad_gate && !t.residual) dims.fail("grad_gate without a residual");
  p.dy = row_matrix("grad_y", g.grad_y, t.x.dtype);
  p.dh = row_matrix("grad_h", g.grad_h, t.x.dtype);
  p.dx = p.op.y;
  p.dresidual =
      row_matrix("grad_residual", g.grad_residual, t.residual ? t.residual->dtype : DType::kF32);
  p.dweight = sums("grad_weight", g.grad_weight, nullptr);
  p.dbias = sums("grad_bias", g.grad_bias, nullptr);
  p.dscale = sums("grad_scale", g.grad_scale, groups.c_str());
  p.dshift = sums("grad_shift", g.grad_shift, groups.c_str());
  p.dgate = sums("grad_gate", g.grad_gate, groups.c_str());
  p.runs = norm_runs(p.op.rows, p.op.groups);
  const int kinds = norm_sums(t.weight || t.scale, t.bias || t.shift, t.gate.has_value());
  const std::string kinds_text = std::to_string(kinds);
  const std::string all_runs = std::to_string(p.op.groups * p.runs);
  dims.check_output("partial", g.partial, {kinds_text.c_str(), all_runs.c_str(), width.c_str()},
                    {DType::kF32});
  if (kinds > 0 && (g.partial.stride[1] != p.op.width || g.partial.stride[2] != 1 ||
                    g.partial.stride[0] != p.op.groups * p.runs * p.op.width)) {
    dims.fail("partial must be contiguous");
  }
  p.partial = reinterpret_cast<float*>(g.partial.data);
  return p;
}

int norm_sums(bool factors, bool addends, bool gate) { return factors + addends + gate; }

std::int64_t norm_runs(std::int64_t rows, std::int64_t groups) {
  constexpr std::int64_t kRows = 32, kMost = 64;
  const std::int64_t per_run = std::max<std::int64_t>(groups, 1) * kRows;
  return std::clamp<std::int64_t>((rows + per_run - 1) / per_run, 1, kMost);
}

}  // namespace vlakern
