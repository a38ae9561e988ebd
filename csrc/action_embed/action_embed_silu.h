// What the driver and the per-ISA kernels agree on.
#pragma once

#include <cstdint>

#include "common/vec_math.h"

namespace vlakern {

using SiluRow = void (*)(float* row, std::int64_t count);  // in place

SiluRow action_embed_avx512bf16();
SiluRow action_embed_avx512();
SiluRow action_embed_avx2();
SiluRow action_embed_neon();
SiluRow action_embed_scalar();

namespace {

template <class Vec>
void silu_row(float* row, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += Vec::kLanes) {
    const int n = static_cast<int>(count - i < Vec::kLanes ? count - i : Vec::kLanes);
    Vec::store(row + i, vec_silu<Vec>(Vec::load(row + i, n)), n);
  }
}

}  // namespace
}  // namespace vlakern
