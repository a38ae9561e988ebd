#include "common/vec_avx2.h"
#include "flow_loss/flow_loss_kernel.h"

namespace vlakern {

FlowKernels flow_loss_avx2(DType dtype, bool mask_is_u8) {
  return pick_kernels<VecAvx2>(dtype, mask_is_u8);
}

}  // namespace vlakern
