#include "common/vec_neon.h"
#include "qkv_prep/qkv_prep_kernel.h"

namespace vlakern {

QkvKernels qkv_prep_neon(const QkvVariant& variant) { return pick_qkv<VecNeon>(variant); }

}  // namespace vlakern
