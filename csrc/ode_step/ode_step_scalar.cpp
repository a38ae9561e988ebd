#include "common/vec_scalar.h"
#include "ode_step/ode_step_kernel.h"

namespace vlakern {

OdeStepUpdate ode_step_scalar(const OdeStepVariant& variant) {
  return pick_update<VecScalar>(variant);
}

}  // namespace vlakern
