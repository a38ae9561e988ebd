#include <algorithm>

#include "ode_step/ode_step.h"

namespace vlakern {
namespace {

void check(const OdeStepTensors& t, bool tau_per_position) {
  const auto state = {DType::kF32, DType::kBF16, DType::kF16};
  Dims dims("ode_step");
  dims.check("x", t.x, {"B", "H", "A"}, state);
  dims.check("v", t.v, {"B", "H", "A"}, state);
  if (t.v0) dims.check("v0", *t.v0, {"B", "H", "A"}, {t.v.dtype});
  const char* columns = tau_per_position ? "H" : "1";
  dims.check("tau", t.tau, {"B", columns}, {DType::kF32});
  dims.check("dtau", t.dtau, {"B"}, {DType::kF32});
  if (t.frozen.has_value() != t.frozen_len.has_value()) {
    dims.fail("frozen and frozen_len must be given together");
  }
  if (t.frozen) {
    dims.check("frozen", *t.frozen, {"B", "H", "A"}, {t.x.dtype});
    dims.check("frozen_len", *t.frozen_len, {"B"}, {DType::kI32});
  }
  if (t.slot_mask) dims.check("slot_mask", *t.slot_mask, {"B", "A"}, {DType::kU8});
  dims.check_output("x_out", t.x_out, {"B", "H", "A"}, {t.x.dtype});
  dims.check_output("tau_out", t.tau_out, {"B", columns}, {DType::kF32});
}

template <class T>
T* pointer(const std::optional<Tensor>& t) {
  return t ? reinterpret_cast<T*>(t->data) : nullptr;
}

template <int kRank>
void copy_strides(const std::optional<Tensor>& t, std::int64_t (&out)[kRank]) {
  if (t) std::copy_n(t->stride, kRank, out);
}

}  // namespace

OdeStepParams ode_step_params(const OdeStepTensors& t, bool tau_per_position,
                              const OdeStepCoefficients& c) {
  check(t, tau_per_position);
  OdeStepParams p{};
  p.x = pointer<const void>(t.x);
  p.v = pointer<const void>(t.v);
  p.v0 = pointer<const void>(t.v0);
  p.tau = pointer<const float>(t.tau);
  p.dtau = pointer<const float>(t.dtau);
  p.frozen = pointer<const void>(t.frozen);
  p.frozen_len = pointer<const std::int32_t>(t.frozen_len);
  p.slot_mask = pointer<const std::uint8_t>(t.slot_mask);
  p.x_out = pointer<void>(t.x_out);
  p.tau_out = pointer<float>(t.tau_out);
  copy_strides(t.x, p.x_stride);
  copy_strides(t.v, p.v_stride);
  copy_strides(t.v0, p.v0_stride);
  copy_strides(t.frozen, p.frozen_stride);
  copy_strides(t.x_out, p.x_out_stride);
  copy_strides(t.slot_mask, p.slot_mask_stride);
  copy_strides(t.tau, p.tau_stride);
  copy_strides(t.tau_out, p.tau_out_stride);
  p.dtau_stride = t.dtau.stride[0];
  p.frozen_len_stride = t.frozen_len ? t.frozen_len->stride[0] : 0;
  p.rows = t.x.shape[0];
  p.positions = t.x.shape[1];
  p.slots = t.x.shape[2];
  p.tau_per_position = tau_per_position;
  p.x_dtype = t.x.dtype;
  p.v_dtype = t.v.dtype;
  p.c = c;
  return p;
}

}  // namespace vlakern
