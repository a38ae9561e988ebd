#include "common/vec_scalar.h"
#include "qkv_prep/qkv_prep_kernel.h"

namespace vlakern {

QkvKernels qkv_prep_scalar(const QkvVariant& variant) { return pick_qkv<VecScalar>(variant); }

}  // namespace vlakern
