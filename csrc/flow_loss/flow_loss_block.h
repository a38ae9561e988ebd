// What the driver and the per-ISA kernels agree on.
#pragma once

#include <cstdint>

#include "common/philox.h"
#include "common/tensor.h"

namespace vlakern {

constexpr std::int64_t kFlowBlock = 64;  // elements: 16 counters of 4 words
constexpr int kFlowLanes = 16;

// Whole blocks of one row, contiguous in every tensor.
struct FlowBlocks {
  const float* action;
  const float* noise;  // or null: drawn at `address`
  const float* slots;  // a weight for each element, or null
  const float* taus;   // a flow time for each element, or null: `tau`
  const void* velocity;
  const void* mask;
  void* out;
  float tau;
  float coefficient;
  PhiloxAddress address;
  std::int64_t first;  // block of the row
  std::int64_t count;  // blocks
  bool half;           // a single block, of which the second half is not wanted
};

// Per lane of sixteen, added to by every call.
struct FlowSums {
  double error[kFlowLanes];
  double mask[kFlowLanes];
};

struct FlowKernels {
  void (*mix)(const FlowBlocks&);
  void (*loss)(const FlowBlocks&, FlowSums*);
  void (*gradient)(const FlowBlocks&);
};

FlowKernels flow_loss_avx512bf16(DType dtype, bool mask_is_u8);
FlowKernels flow_loss_avx512(DType dtype, bool mask_is_u8);
FlowKernels flow_loss_avx2(DType dtype, bool mask_is_u8);
FlowKernels flow_loss_neon(DType dtype, bool mask_is_u8);
FlowKernels flow_loss_scalar(DType dtype, bool mask_is_u8);

}  // namespace vlakern
