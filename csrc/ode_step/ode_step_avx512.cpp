#include "common/vec_avx512.h"
#include "ode_step/ode_step_kernel.h"

namespace vlakern {

OdeStepUpdate ode_step_avx512(const OdeStepVariant& variant) {
  return pick_update<VecAvx512>(variant);
}

}  // namespace vlakern
