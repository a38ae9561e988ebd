#include "common/vec_avx512bf16.h"
#include "norm/norm_kernel.h"

namespace vlakern {

NormKernels norm_avx512bf16(const NormVariant& variant) {
  return pick_norm<VecAvx512Bf16>(variant);
}

}  // namespace vlakern
