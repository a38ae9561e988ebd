#include "common/vec_avx512bf16.h"
#include "image_prep/image_prep_passes_vnni.h"

namespace vlakern {

ImagePrepKernels image_prep_avx512bf16() {
  ImagePrepKernels kernels = image_prep_kernels<VecAvx512Bf16, VnniPasses>();
  if (__builtin_cpu_supports("avx512vbmi")) kernels.columns = VnniPasses::columns_vbmi;
  return kernels;
}

}  // namespace vlakern
