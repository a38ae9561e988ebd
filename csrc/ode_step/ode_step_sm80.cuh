// The device kernel of ode_step, for sm_80 and newer.
#pragma once

#include "common/cuda_number.cuh"
#include "ode_step/ode_step_index.h"

namespace vlakern {

struct OdeStepKernelParams {
  OdeStepParams op;
  OdeStepLaunch launch;
};

template <class T, int kRun>
__device__ __forceinline__ Run<T, kRun> load_run(const void* base, std::int64_t offset) {
  return *reinterpret_cast<const Run<T, kRun>*>(static_cast<const T*>(base) + offset);
}

template <class V, int kRun, bool kHasV0>
__device__ __forceinline__ void move_run(const OdeStepParams& p, const OdeStepPlace& at,
                                         float (&y)[kRun]) {
  const float dtau = p.dtau[at.b * p.dtau_stride];
  const float a0 = __fmul_rn(dtau, p.c.c0);
  const float a1 = __fmul_rn(dtau, p.c.c1);
  const Run<V, kRun> v = load_run<V, kRun>(p.v, ode_step_offset(p.v_stride, at));
  Run<V, kRun> v0{};
  if constexpr (kHasV0) v0 = load_run<V, kRun>(p.v0, ode_step_offset(p.v0_stride, at));
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const std::int64_t slot = at.b * p.slot_mask_stride[0] + (at.a + i) * p.slot_mask_stride[1];
    if (p.slot_mask != nullptr && p.slot_mask[slot] == 0) continue;
    if constexpr (kHasV0) y[i] = __fmaf_rn(a0, widen(v0.element[i]), y[i]);
    y[i] = __fmaf_rn(a1, widen(v.element[i]), y[i]);
  }
}

__device__ __forceinline__ void advance_tau(const OdeStepParams& p, const OdeStepPlace& at,
                                            bool frozen) {
  const float tau = p.tau[at.b * p.tau_stride[0] + at.h * p.tau_stride[1]];
  const float next = __fmaf_rn(p.c.c_tau, p.dtau[at.b * p.dtau_stride], tau);
  p.tau_out[at.b * p.tau_out_stride[0] + at.h * p.tau_out_stride[1]] = frozen ? 1.0f : next;
}

template <class X, class V, int kRun, bool kHasV0>
__global__ void __launch_bounds__(kOdeStepBlock)
    ode_step_sm80(const __grid_constant__ OdeStepKernelParams params) {
  const OdeStepParams& p = params.op;
  const std::int64_t thread = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (thread >= params.launch.threads) return;
  const OdeStepPlace at =
      ode_step_place(thread, p.positions, params.launch.runs_per_position, kRun);
  const bool frozen = p.frozen_len != nullptr && at.h < p.frozen_len[at.b * p.frozen_len_stride];
  if (at.a == 0 && p.tau_per_position) advance_tau(p, at, frozen);
  if (at.a == 0 && !p.tau_per_position && at.h == 0) advance_tau(p, at, false);
  if (at.a >= p.slots) return;

  X* out = static_cast<X*>(p.x_out) + ode_step_offset(p.x_out_stride, at);
  if (frozen) {
    *reinterpret_cast<Run<X, kRun>*>(out) =
        load_run<X, kRun>(p.frozen, ode_step_offset(p.frozen_stride, at));
    return;
  }
  const Run<X, kRun> x = load_run<X, kRun>(p.x, ode_step_offset(p.x_stride, at));
  float y[kRun];
#pragma unroll
  for (int i = 0; i < kRun; ++i) y[i] = widen(x.element[i]);
  move_run<V, kRun, kHasV0>(p, at, y);
  Run<X, kRun> next;
#pragma unroll
  for (int i = 0; i < kRun; ++i) next.element[i] = narrow<X>(y[i]);
  *reinterpret_cast<Run<X, kRun>*>(out) = next;
}

}  // namespace vlakern
