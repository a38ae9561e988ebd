#include "common/vec_avx512.h"
#include "flow_loss/flow_loss_kernel.h"

namespace vlakern {

FlowKernels flow_loss_avx512(DType dtype, bool mask_is_u8) {
  return pick_kernels<VecAvx512>(dtype, mask_is_u8);
}

}  // namespace vlakern
