#include "common/vec_avx512.h"
#include "image_prep/image_prep_passes_avx2.h"

namespace vlakern {

ImagePrepKernels image_prep_avx512() { return image_prep_kernels<VecAvx512, Avx2Passes>(); }

}  // namespace vlakern
