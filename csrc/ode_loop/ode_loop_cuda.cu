#include "common/cuda_launch.h"
#include "common/cuda_warp.cuh"
#include "common/error.h"
#include "ode_loop/ode_loop_sm80.cuh"

namespace vlakern {
namespace {

struct KernelParams {
  OdeLoopParams op;
  int ring_slots;
};

template <int kRowTiles, int kHeadDim>
__global__ void __launch_bounds__(kOdeLoopWarps* kLanes, 1)
    ode_loop_sm80(const __grid_constant__ KernelParams params) {
  extern __shared__ __align__(16) unsigned char shared[];
  CudaWarp w(shared);
  OdeLoop<CudaWarp, kRowTiles, kHeadDim>(w, params.op, params.ring_slots).run();
}

using Kernel = void (*)(KernelParams);

template <int kHeadDim>
Kernel pick_rows(int row_tiles) {
  return row_tiles == 1 ? ode_loop_sm80<1, kHeadDim> : ode_loop_sm80<4, kHeadDim>;
}

Kernel pick(const OdeLoopParams& p, int row_tiles) {
  if (p.head_dim == 64) return pick_rows<64>(row_tiles);
  return p.head_dim == 128 ? pick_rows<128>(row_tiles) : pick_rows<256>(row_tiles);
}

int attribute(cudaDeviceAttr which, const char* what) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), "ode_loop: device");
  check_cuda(cudaDeviceGetAttribute(&value, which, device), what);
  return value;
}

}  // namespace

void ode_loop_cuda(const OdeLoopParams& p, std::uintptr_t stream) {
  const int processors = attribute(cudaDevAttrMultiProcessorCount, "ode_loop: multiprocessors");
  const int most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, "ode_loop: shared memory");
  if (attribute(cudaDevAttrCooperativeLaunch, "ode_loop: cooperative launches") == 0) {
    throw UnsupportedError("ode_loop: this GPU has no cooperative launches");
  }
  const OdeLoopPlan plan = ode_loop_plan(p, processors, most);
  const Kernel kernel = pick(p, plan.row_tiles);
  check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared),
             "ode_loop: shared memory");
  // A block waits for all others: they must all be there, or none, which only this launch grants.
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.blocks));
  config.blockDim = dim3(kOdeLoopWarps * kLanes);
  config.dynamicSmemBytes = static_cast<std::size_t>(plan.shared);
  config.stream = reinterpret_cast<cudaStream_t>(stream);
  config.attrs = &cooperative;
  config.numAttrs = 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, KernelParams{p, plan.ring_slots}), "ode_loop");
}

}  // namespace vlakern
