// A warp of a GPU, sm_80 and newer, as common/warp.h wants it.
#pragma once

#include <cuda_runtime.h>

#include "common/warp.h"

namespace vlakern {

template <class T>
struct OwnLane {
  T value;
  VLAKERN_DEVICE T& operator[](int) { return value; }
  VLAKERN_DEVICE const T& operator[](int) const { return value; }
};

class CudaWarp {
 public:
  template <class T>
  using Lanes = OwnLane<T>;

  VLAKERN_DEVICE explicit CudaWarp(unsigned char* shared) : shared_(shared) {}

  template <class F>
  VLAKERN_DEVICE void each(F f) const {
    f(static_cast<int>(threadIdx.x % kLanes));
  }
  VLAKERN_DEVICE int block() const { return static_cast<int>(blockIdx.x); }
  VLAKERN_DEVICE int blocks() const { return static_cast<int>(gridDim.x); }
  VLAKERN_DEVICE int warp() const { return static_cast<int>(threadIdx.x / kLanes); }
  VLAKERN_DEVICE unsigned char* shared() const { return shared_; }
  VLAKERN_DEVICE void sync() const { __syncthreads(); }

  VLAKERN_DEVICE void copy16(int, void* to, const void* from, bool valid) const {
    const auto at = static_cast<unsigned>(__cvta_generic_to_shared(to));
    const int size = valid ? 16 : 0;  // the rest is filled with zeros
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(at), "l"(from),
                 "r"(size)
                 : "memory");
  }
  VLAKERN_DEVICE void commit() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
  VLAKERN_DEVICE void wait(int pending) const {
    switch (pending) {
      case 7:
        return wait_for<7>();
      case 6:
        return wait_for<6>();
      case 5:
        return wait_for<5>();
      case 4:
        return wait_for<4>();
      case 3:
        return wait_for<3>();
      case 2:
        return wait_for<2>();
      case 1:
        return wait_for<1>();
      default:
        return wait_for<0>();
    }
  }

  VLAKERN_DEVICE void join() const { __syncwarp(); }
  VLAKERN_DEVICE void mma(Lanes<Sums>& sums, const Lanes<Left>& left,
                          const Lanes<Right>& right) const {
    float (&c)[4] = sums.value.c;
    const auto& a = left.value.r;
    const auto& b = right.value.r;
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  VLAKERN_DEVICE Lanes<float> swap(const Lanes<float>& v, int mask) const {
    return {__shfl_xor_sync(0xffffffffu, v.value, mask)};
  }

  // Past the first-level cache, which other blocks' writes do not reach.
  VLAKERN_DEVICE Words load16(const void* p) const {
    const uint4 found = __ldcg(static_cast<const uint4*>(p));
    return {{found.x, found.y, found.z, found.w}};
  }
  VLAKERN_DEVICE std::uint16_t load2(const void* p) const {
    return __ldcg(static_cast<const unsigned short*>(p));
  }
  VLAKERN_DEVICE float load4(const float* p) const { return __ldcg(p); }

  VLAKERN_DEVICE std::uint32_t arrive(std::uint32_t* counter, std::uint32_t count) const {
    std::uint32_t old;
    __threadfence();
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
                 : "=r"(old)
                 : "l"(counter), "r"(count)
                 : "memory");
    return old;
  }
  VLAKERN_DEVICE std::uint32_t acquire(const std::uint32_t* counter) const {
    std::uint32_t found;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(counter) : "memory");
    return found;
  }
  // About ten seconds: a block that never comes is an error of this launch, not a GPU that hangs.
  VLAKERN_DEVICE void pause(std::uint32_t spins) const {
    if (spins == (1u << 24)) __trap();
  }

  VLAKERN_DEVICE float exp2(float x) const { return exp2f(x); }
  VLAKERN_DEVICE float rsqrt(float x) const { return rsqrtf(x); }

 private:
  template <int kPending>
  VLAKERN_DEVICE static void wait_for() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
  }

  unsigned char* shared_;
};

}  // namespace vlakern
