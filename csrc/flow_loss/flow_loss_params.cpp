#include <algorithm>
#include <string>

#include "flow_loss/flow_loss.h"

namespace vlakern {
namespace {

constexpr auto kStates = {DType::kF32, DType::kBF16, DType::kF16};

template <class T>
T* pointer(const std::optional<Tensor>& t) {
  return t ? reinterpret_cast<T*>(t->data) : nullptr;
}

template <int kRank>
void copy_strides(const std::optional<Tensor>& t, std::int64_t (&out)[kRank]) {
  if (t) std::copy_n(t->stride, kRank, out);
}

void check_source(const FlowTensors& t, Dims& dims) {
  dims.check("action", t.action, {"B", "H", "A"}, {DType::kF32});
  if (t.noise) dims.check("noise", *t.noise, {"R", "H", "A"}, {DType::kF32});
  if (t.rows) dims.check("rows", *t.rows, {"R"}, {DType::kI64});
  if (t.slots) dims.check("slots", *t.slots, {"B", "A"}, {DType::kF32});
  if (t.seed < 0) dims.fail("seed must be 0 or more, got " + std::to_string(t.seed));
}

FlowParams source_params(const FlowTensors& t, const Dims& dims) {
  FlowParams p{};
  p.action = reinterpret_cast<const float*>(t.action.data);
  p.noise = pointer<const float>(t.noise);
  p.rows = pointer<const std::int64_t>(t.rows);
  p.slots = pointer<const float>(t.slots);
  std::copy_n(t.action.stride, 3, p.action_stride);
  copy_strides(t.noise, p.noise_stride);
  copy_strides(t.slots, p.slots_stride);
  p.rows_stride = t.rows ? t.rows->stride[0] : 0;
  p.row_count = dims["R"];
  p.samples = dims["B"];
  p.positions = dims["H"];
  p.slot_count = dims["A"];
  p.seed = static_cast<std::uint64_t>(t.seed);
  p.per_sample = p.samples == 0 ? 1 : p.row_count / p.samples;
  if (p.per_sample * p.samples != p.row_count) {
    dims.fail("R = " + std::to_string(p.row_count) +
              " rows are not a multiple of B = " + std::to_string(p.samples) + " samples");
  }
  // A row's blocks are counted in 32 bits.
  if (p.positions * p.slot_count >= std::int64_t{1} << 33) dims.fail("a row is too long");
  return p;
}

}  // namespace

FlowParams flow_mix_params(const FlowTensors& t, const FlowMixTensors& mix, const FlowTau& law) {
  Dims dims("flow_mix");
  dims.check_output("x_out", mix.x_out, {"R", "H", "A"}, kStates);
  check_source(t, dims);
  dims.check_output("tau_out", mix.tau_out, {"R", "T"}, {DType::kF32});
  if (mix.tau) dims.check("tau", *mix.tau, {"R", "T"}, {DType::kF32});
  FlowParams p = source_params(t, dims);
  p.tau_columns = dims["T"];
  if (p.tau_columns != 1 && (p.tau_columns != p.positions || !mix.tau)) {
    dims.fail("tau_out must be [R, 1], or [R, H] like a given tau");
  }
  p.tau = pointer<const float>(mix.tau);
  p.tau_out = reinterpret_cast<float*>(mix.tau_out.data);
  p.out = reinterpret_cast<void*>(mix.x_out.data);
  copy_strides(mix.tau, p.tau_stride);
  std::copy_n(mix.tau_out.stride, 2, p.tau_out_stride);
  std::copy_n(mix.x_out.stride, 3, p.out_stride);
  p.dtype = mix.x_out.dtype;
  p.law = law;
  return p;
}

FlowParams flow_loss_params(const FlowTensors& t, const FlowLossTensors& loss) {
  Dims dims("flow_loss");
  dims.check("velocity", loss.velocity, {"R", "H", "A"}, kStates);
  check_source(t, dims);
  if (loss.mask) dims.check("mask", *loss.mask, {"B", "H", "A"}, {DType::kF32, DType::kU8});
  if (loss.group) dims.check("group", *loss.group, {"B"}, {DType::kI32});
  dims.check("coefficients", loss.coefficients, {"G"}, {DType::kF32});
  if (loss.weights) dims.check("weights", *loss.weights, {"G"}, {DType::kF32});
  if (loss.loss) dims.check("loss", *loss.loss, {"1"}, {DType::kF32});
  if (loss.gradient) {
    dims.check_output("gradient", *loss.gradient, {"R", "H", "A"}, {loss.velocity.dtype});
  }
  FlowParams p = source_params(t, dims);
  p.velocity = reinterpret_cast<const void*>(loss.velocity.data);
  p.mask = pointer<const void>(loss.mask);
  p.group = pointer<const std::int32_t>(loss.group);
  p.weights = pointer<const float>(loss.weights);
  p.coefficients = reinterpret_cast<float*>(loss.coefficients.data);
  p.loss = pointer<float>(loss.loss);
  p.out = pointer<void>(loss.gradient);
  std::copy_n(loss.velocity.stride, 3, p.velocity_stride);
  copy_strides(loss.mask, p.mask_stride);
  copy_strides(loss.gradient, p.out_stride);
  p.group_stride = loss.group ? loss.group->stride[0] : 0;
  p.weights_stride = loss.weights ? loss.weights->stride[0] : 0;
  p.coefficients_stride = loss.coefficients.stride[0];
  p.groups = dims["G"];
  p.dtype = loss.velocity.dtype;
  p.mask_is_u8 = loss.mask && loss.mask->dtype == DType::kU8;
  return p;
}

}  // namespace vlakern
