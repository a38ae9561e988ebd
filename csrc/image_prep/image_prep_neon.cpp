#include "common/vec_neon.h"
#include "image_prep/image_prep_kernel.h"

namespace vlakern {

ImagePrepKernels image_prep_neon() { return image_prep_kernels<VecNeon, PlainPasses>(); }

}  // namespace vlakern
