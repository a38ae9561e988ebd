#include "common/vec_scalar.h"
#include "linear/linear_tiles.h"

namespace vlakern {

LinearKernels linear_scalar(const LinearVariant& variant) {
  return portable_kernels<VecScalar, 4, true>(variant);
}

}  // namespace vlakern
