// The norm weights of one expert in fp32, in memory that a thread keeps.
#pragma once

#include "common/scratch.h"
#include "qkv_prep/qkv_prep.h"
#include "qkv_prep/qkv_prep_heads.h"

namespace vlakern {

struct QkvWeights {
  const float* q = nullptr;  // [D] or null: no norm
  const float* k = nullptr;
  float* factors;  // [4, D / 2] workspace

  QkvWeights(const QkvPrepParams& p, const QkvExpert& e, const QkvKernels& kernels) {
    thread_local Scratch scratch;
    const std::int64_t width = 2 * p.half;
    scratch.reserve(4, width);
    factors = scratch.row(2);  // two rows in one: width is 2 * half
    if (e.q_weight.data == nullptr) return;
    q = wide(e.q_weight, p.plus_one, kernels, scratch.row(0), width);
    k = wide(e.k_weight, p.plus_one, kernels, scratch.row(1), width);
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
