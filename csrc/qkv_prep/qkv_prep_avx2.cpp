#include "common/vec_avx2.h"
#include "qkv_prep/qkv_prep_kernel.h"

namespace vlakern {

QkvKernels qkv_prep_avx2(const QkvVariant& variant) { return pick_qkv<VecAvx2>(variant); }

}  // namespace vlakern
