#include "common/vec_neon.h"
#include "norm/norm_kernel.h"

namespace vlakern {

NormKernels norm_neon(const NormVariant& variant) { return pick_norm<VecNeon>(variant); }

}  // namespace vlakern
