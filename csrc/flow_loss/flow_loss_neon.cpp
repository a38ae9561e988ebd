#include "common/vec_neon.h"
#include "flow_loss/flow_loss_kernel.h"

namespace vlakern {

FlowKernels flow_loss_neon(DType dtype, bool mask_is_u8) {
  return pick_kernels<VecNeon>(dtype, mask_is_u8);
}

}  // namespace vlakern
