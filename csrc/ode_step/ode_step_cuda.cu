#include <limits>

#include "common/cuda_launch.h"
#include "common/error.h"
#include "ode_step/ode_step_sm80.cuh"

namespace vlakern {
namespace {

using Kernel = void (*)(OdeStepKernelParams);

template <class X, class V>
Kernel pick_flags(const OdeStepParams& p, int run) {
  if (p.v0 != nullptr)
    return run == 4 ? ode_step_sm80<X, V, 4, true> : ode_step_sm80<X, V, 1, true>;
  return run == 4 ? ode_step_sm80<X, V, 4, false> : ode_step_sm80<X, V, 1, false>;
}

template <class X>
Kernel pick_velocity(const OdeStepParams& p, int run) {
  if (p.v_dtype == DType::kBF16) return pick_flags<X, __nv_bfloat16>(p, run);
  if (p.v_dtype == DType::kF16) return pick_flags<X, __half>(p, run);
  return pick_flags<X, float>(p, run);
}

Kernel pick(const OdeStepParams& p, int run) {
  if (p.x_dtype == DType::kBF16) return pick_velocity<__nv_bfloat16>(p, run);
  if (p.x_dtype == DType::kF16) return pick_velocity<__half>(p, run);
  return pick_velocity<float>(p, run);
}

}  // namespace

void ode_step_cuda(const OdeStepTensors& t, bool tau_per_position, const OdeStepCoefficients& c,
                   std::uintptr_t stream) {
  const OdeStepParams p = ode_step_params(t, tau_per_position, c);
  if (p.rows == 0 || p.positions == 0) return;
  const OdeStepLaunch chosen = ode_step_launch(p);
  if (chosen.grid > std::numeric_limits<std::int32_t>::max()) {
    throw InputError("ode_step: x has more elements than one launch covers (2^31 blocks)");
  }
  launch("ode_step", pick(p, chosen.run), dim3(static_cast<unsigned>(chosen.grid)),
         dim3(static_cast<unsigned>(chosen.block)), stream, OdeStepKernelParams{p, chosen});
}

}  // namespace vlakern
