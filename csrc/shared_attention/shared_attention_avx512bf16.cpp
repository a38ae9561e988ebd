#include "shared_attention/shared_attention_backward.h"
#include "shared_attention/shared_attention_dot_bf16.h"

namespace vlakern {

AttentionKernels shared_attention_avx512bf16(DType dtype) {
  if (dtype == DType::kBF16) return attention_kernels<DotBf16, bf16>();
  return attention_kernels<DotF32<VecAvx512Bf16>, float>();
}

}  // namespace vlakern
