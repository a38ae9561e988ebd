// Launch helpers for host code of CUDA kernels: no allocation, no synchronisation, no device
// switch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace vlakern {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Launches a kernel that takes one Params struct by value.
template <class Params>
void launch(const char* name, void (*kernel)(Params), dim3 grid, dim3 block, std::uintptr_t stream,
            const Params& params) {
  kernel<<<grid, block, 0, reinterpret_cast<cudaStream_t>(stream)>>>(params);
  check_cuda(cudaGetLastError(), name);
}

}  // namespace vlakern
