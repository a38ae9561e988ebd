#include "common/vec_neon.h"
#include "linear/linear_tiles.h"

namespace vlakern {

LinearKernels linear_neon(const LinearVariant& variant) {
  return portable_kernels<VecNeon, 5, true>(variant);
}

}  // namespace vlakern
