#include "common/vec_scalar.h"
#include "shared_attention/shared_attention_backward.h"

namespace vlakern {

AttentionKernels shared_attention_scalar(DType dtype) {
  return attention_kernels_f32<VecScalar>(dtype);
}

}  // namespace vlakern
