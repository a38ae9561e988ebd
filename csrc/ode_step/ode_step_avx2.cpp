#include "common/vec_avx2.h"
#include "ode_step/ode_step_kernel.h"

namespace vlakern {

OdeStepUpdate ode_step_avx2(const OdeStepVariant& variant) { return pick_update<VecAvx2>(variant); }

}  // namespace vlakern
