#include "common/vec_neon.h"
#include "ode_step/ode_step_kernel.h"

namespace vlakern {

OdeStepUpdate ode_step_neon(const OdeStepVariant& variant) { return pick_update<VecNeon>(variant); }

}  // namespace vlakern
