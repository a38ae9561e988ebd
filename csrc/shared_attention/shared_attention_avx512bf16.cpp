#include "shared_attention/shared_attention_backward.h"
#include "shared_attention/shared_attention_dot_bf16.h"
#include "shared_attention/shared_attention_forward_bf16.h"

namespace vlakern {

AttentionKernels shared_attention_avx512bf16(DType dtype) {
  if (dtype != DType::kBF16) return attention_kernels<DotF32<VecAvx512Bf16>, float>();
  AttentionKernels kernels = attention_kernels<DotBf16, bf16>();
  kernels.unit = attention_unit_bf16;
  kernels.pack = pack_prefix_bf16;
  return kernels;
}

}  // namespace vlakern
