#include "common/vec_avx2.h"
#include "shared_attention/shared_attention_backward.h"

namespace vlakern {

AttentionKernels shared_attention_avx2(DType dtype) {
  return attention_kernels_f32<VecAvx2>(dtype);
}

}  // namespace vlakern
