#include "common/vec_avx512bf16.h"
#include "qkv_prep/qkv_prep_kernel.h"

namespace vlakern {

QkvKernels qkv_prep_avx512bf16(const QkvVariant& variant) {
  return pick_qkv<VecAvx512Bf16>(variant);
}

}  // namespace vlakern
