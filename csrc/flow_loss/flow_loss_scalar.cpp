#include "common/vec_scalar.h"
#include "flow_loss/flow_loss_kernel.h"

namespace vlakern {

FlowKernels flow_loss_scalar(DType dtype, bool mask_is_u8) {
  return pick_kernels<VecScalar>(dtype, mask_is_u8);
}

}  // namespace vlakern
