#include "common/vec_avx2.h"
#include "norm/norm_kernel.h"

namespace vlakern {

NormKernels norm_avx2(const NormVariant& variant) { return pick_norm<VecAvx2>(variant); }

}  // namespace vlakern
