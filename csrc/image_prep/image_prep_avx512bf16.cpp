#include "common/vec_avx512bf16.h"
#include "image_prep/image_prep_passes_vnni.h"

namespace vlakern {

ImagePrepKernels image_prep_avx512bf16() { return image_prep_kernels<VecAvx512Bf16, VnniPasses>(); }

}  // namespace vlakern
