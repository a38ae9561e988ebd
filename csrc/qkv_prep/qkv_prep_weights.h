// The norm weights of one expert in fp32, in memory that a thread keeps.
#pragma once

#include <vector>

#include "qkv_prep/qkv_prep.h"
#include "qkv_prep/qkv_prep_heads.h"

namespace vlakern {

struct QkvWeights {
  const float* q = nullptr;  // [D] or null: no norm
  const float* k = nullptr;

  QkvWeights(const QkvPrepParams& p, const QkvExpert& e, const QkvKernels& kernels) {
    if (e.q_weight.data == nullptr) return;
    thread_local std::vector<float> memory;
    const std::int64_t width = 2 * p.half;
    if (memory.size() < static_cast<std::size_t>(2 * width)) {
      memory.resize(static_cast<std::size_t>(2 * width));
    }
    q = wide(e.q_weight, p.plus_one, kernels, memory.data(), width);
    k = wide(e.k_weight, p.plus_one, kernels, memory.data() + width, width);
  }

 private:
  static const float* wide(const QkvWeight& w, bool plus_one, const QkvKernels& kernels,
                           float* memory, std::int64_t width) {
    if (w.dtype == DType::kF32 && !plus_one) return static_cast<const float*>(w.data);
    kernels.widen(w.data, w.dtype, plus_one, memory, width);
    return memory;
  }
};

}  // namespace vlakern
