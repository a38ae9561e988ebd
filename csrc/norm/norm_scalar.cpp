#include "common/vec_scalar.h"
#include "norm/norm_kernel.h"

namespace vlakern {

NormKernels norm_scalar(const NormVariant& variant) { return pick_norm<VecScalar>(variant); }

}  // namespace vlakern
