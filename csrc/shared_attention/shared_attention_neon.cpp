#include "common/vec_neon.h"
#include "shared_attention/shared_attention_backward.h"

namespace vlakern {

AttentionKernels shared_attention_neon(DType dtype) {
  return attention_kernels_f32<VecNeon>(dtype);
}

}  // namespace vlakern
