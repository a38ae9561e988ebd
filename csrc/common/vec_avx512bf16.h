// VecAvx512 with the bfloat16 conversion instruction.
#pragma once

#include "common/vec_avx512.h"

namespace vlakern {
namespace {

struct VecAvx512Bf16 : VecAvx512 {
  using VecAvx512::store;

  static void store(bf16* p, Float value, int n) {
    _mm256_mask_storeu_epi16(p, leading(n), round_bf16(value));
  }
  static __m256i round_bf16(Float value) {
    // vcvtneps2bf16 flushes subnormals and keeps NaN payloads; the other rooms do neither.
    constexpr int kNanOrSubnormal = 0x01 | 0x20 | 0x80;
    if (__builtin_expect(_mm512_fpclass_ps_mask(value, kNanOrSubnormal) != 0, 0)) {
      return VecAvx512::round_bf16(value);
    }
    return (__m256i)_mm512_cvtneps_pbh(value);
  }
};

}  // namespace
}  // namespace vlakern
