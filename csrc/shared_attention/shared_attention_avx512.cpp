#include "common/vec_avx512.h"
#include "shared_attention/shared_attention_backward.h"

namespace vlakern {

AttentionKernels shared_attention_avx512(DType dtype) {
  return attention_kernels_f32<VecAvx512>(dtype);
}

}  // namespace vlakern
