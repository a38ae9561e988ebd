#include "common/vec_avx2.h"
#include "image_prep/image_prep_passes_avx2.h"

namespace vlakern {

ImagePrepKernels image_prep_avx2() { return image_prep_kernels<VecAvx2, Avx2Passes>(); }

}  // namespace vlakern
