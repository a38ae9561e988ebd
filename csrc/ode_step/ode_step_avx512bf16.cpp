#include "common/vec_avx512bf16.h"
#include "ode_step/ode_step_kernel.h"

namespace vlakern {

OdeStepUpdate ode_step_avx512bf16(const OdeStepVariant& variant) {
  return pick_update<VecAvx512Bf16>(variant);
}

}  // namespace vlakern
