// The words that a warp program is written in: the same source runs as device code and, a warp a
// thread, in a test on the host.
//
// A warp program is a template over a machine W, whose members are
//
//   Lanes<T>                 a value of each lane, v[lane]; a register on a GPU
//   each(f)                  f(lane) for every lane
//   block(), blocks(), warp()
//   shared()                 the block's memory
//   sync()                   all warps of the block wait for each other
//   copy16(lane, to, from, valid)  begins a copy of 16 bytes to shared memory, zeros unless valid
//   commit(), wait(pending)  closes a group of copies; all groups but the last `pending` are there,
//                            for the lane that asked for them
//   join()                   lanes that went different ways go on together, as mma wants them
//   mma(c, a, b)             c += a · b, 16x8x16 bf16, fp32 sums
//   swap(v, mask)            the value of lane ^ mask
//   load16(p)                16 bytes that other blocks may have written
//   arrive(p, n), acquire(p) adds n after all earlier writes of the block, giving the old value;
//                            reads before all later reads
//   pause(spins)             between two reads of a waiting lane
//   exp2(x), rsqrt(x)
//
// Between lanes nothing passes through shared memory without sync(): a lane reads what it copied
// itself, and the rest goes through mma and swap.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/host_device.h"

#if defined(__CUDACC__)
#define VLAKERN_DEVICE __device__ __forceinline__
#define VLAKERN_UNROLL _Pragma("unroll")
#else
#define VLAKERN_DEVICE inline
#define VLAKERN_UNROLL
#endif

namespace vlakern {

constexpr int kLanes = 32;

struct alignas(16) Words {
  std::uint32_t w[4];
};

// Of mma m16n8k16. With g = lane / 4 and c = lane % 4, a lane holds
//   a  rows g, g + 8, g, g + 8 at k = 2c, 2c + 1 of the first two and 2c + 8, 2c + 9 of the others
//   b  column g at k = 2c, 2c + 1 and at k = 2c + 8, 2c + 9
//   c  row g at columns 2c, 2c + 1, then row g + 8
struct Left {
  std::uint32_t r[4];
};
struct Right {
  std::uint32_t r[2];
};
struct alignas(16) Sums {
  float c[4];
};

VLAKERN_HOST_DEVICE int row_of(int lane) { return lane / 4; }     // g
VLAKERN_HOST_DEVICE int column_of(int lane) { return lane % 4; }  // c

// The order of k within a product is free as long as both sides keep it: 16 bytes of a row, which
// are k = 8c to 8c + 7 of 32, serve two products, each with two of the four words.
VLAKERN_HOST_DEVICE Left left_of(const Words& row, const Words& row8, int half) {
  return {{row.w[2 * half], row8.w[2 * half], row.w[2 * half + 1], row8.w[2 * half + 1]}};
}
VLAKERN_HOST_DEVICE Right right_of(const Words& column, int half) {
  return {{column.w[2 * half], column.w[2 * half + 1]}};
}

// Two bf16 of one column from two rows that hold eight columns each.
VLAKERN_HOST_DEVICE std::uint32_t pair_of(const Words& row, const Words& next, int column) {
  const std::uint32_t a = row.w[column / 2], b = next.w[column / 2];
  return column % 2 == 0 ? (a & 0xffffu) | (b << 16) : (a >> 16) | (b & 0xffff0000u);
}

VLAKERN_HOST_DEVICE float float_from(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}
VLAKERN_HOST_DEVICE std::uint32_t bits_from(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

VLAKERN_HOST_DEVICE float wide(std::uint16_t bf16_bits) {
  return float_from(std::uint32_t{bf16_bits} << 16);
}

// Round to nearest even; every NaN becomes 0x7fc0.
VLAKERN_HOST_DEVICE std::uint32_t bf16_bits(float value) {
  const std::uint32_t bits = bits_from(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0u;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}
VLAKERN_HOST_DEVICE std::uint32_t bf16_pair(float first, float second) {
  return bf16_bits(first) | (bf16_bits(second) << 16);
}

// All blocks of a grid whose blocks run at once wait for each other: one atomic counter, of which
// the highest bit turns when the last one has come, so that it is ready for the next time. To be
// called by one lane of a block, between two sync().
template <class W>
VLAKERN_DEVICE void meet(W& w, std::uint32_t* counter) {
  constexpr std::uint32_t kTurn = 0x80000000u;
  const auto others = static_cast<std::uint32_t>(w.blocks() - 1);
  const std::uint32_t old = w.arrive(counter, w.block() == 0 ? kTurn - others : 1u);
  for (std::uint32_t spins = 0; ((old ^ w.acquire(counter)) & kTurn) == 0; ++spins) w.pause(spins);
}

}  // namespace vlakern
