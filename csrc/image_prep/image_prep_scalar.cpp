#include "common/vec_scalar.h"
#include "image_prep/image_prep_kernel.h"

namespace vlakern {

ImagePrepKernels image_prep_scalar() { return image_prep_kernels<VecScalar, PlainPasses>(); }

}  // namespace vlakern
