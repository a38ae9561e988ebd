#include "common/vec_avx512.h"
#include "norm/norm_kernel.h"

namespace vlakern {

NormKernels norm_avx512(const NormVariant& variant) { return pick_norm<VecAvx512>(variant); }

}  // namespace vlakern
