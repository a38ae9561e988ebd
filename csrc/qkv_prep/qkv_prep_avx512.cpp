#include "common/vec_avx512.h"
#include "qkv_prep/qkv_prep_kernel.h"

namespace vlakern {

QkvKernels qkv_prep_avx512(const QkvVariant& variant) { return pick_qkv<VecAvx512>(variant); }

}  // namespace vlakern
