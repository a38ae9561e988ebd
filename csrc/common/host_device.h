// Marks small functions that the device runs and the host tests.
#pragma once

#if defined(__CUDACC__)
#define VLAKERN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define VLAKERN_HOST_DEVICE inline
#endif
