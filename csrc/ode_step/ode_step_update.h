// What the driver and the per-ISA kernels agree on.
#pragma once

#include <cstdint>

#include "common/tensor.h"

namespace vlakern {

// A run of elements that are contiguous in every tensor and belong to one row.
struct OdeStepSegment {
  const void* x;             // [count]
  const void* v;             // [count]
  const void* v0;            // [count] or null
  const std::uint8_t* mask;  // [count] or null
  void* out;                 // [count]
  std::int64_t count;
  float a0;  // dtau * c0
  float a1;  // dtau * c1
};

struct OdeStepVariant {
  DType x;
  DType v;
  bool has_v0;
  bool has_mask;
};

using OdeStepUpdate = void (*)(const OdeStepSegment&);

OdeStepUpdate ode_step_avx512bf16(const OdeStepVariant& variant);
OdeStepUpdate ode_step_avx512(const OdeStepVariant& variant);
OdeStepUpdate ode_step_avx2(const OdeStepVariant& variant);
OdeStepUpdate ode_step_neon(const OdeStepVariant& variant);
OdeStepUpdate ode_step_scalar(const OdeStepVariant& variant);

}  // namespace vlakern
