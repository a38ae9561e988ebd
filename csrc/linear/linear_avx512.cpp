#include "common/vec_avx512.h"
#include "linear/linear_tiles.h"

namespace vlakern {

LinearKernels linear_avx512(const LinearVariant& variant) {
  return portable_kernels<VecAvx512, 14>(variant);
}

}  // namespace vlakern
