#include "action_embed/action_embed.h"
#include "action_embed/action_embed_silu.h"
#include "common/cpu_features.h"
#include "common/thread_pool.h"

namespace vlakern {
namespace {

SiluRow choose_silu(Isa isa) {
  switch (isa) {
#if defined(VLAKERN_HAS_AVX512_BF16)
    case Isa::kAvx512Bf16:
      return action_embed_avx512bf16();
#endif
#if defined(VLAKERN_HAS_AVX512)
    case Isa::kAvx512:
      return action_embed_avx512();
#endif
#if defined(VLAKERN_HAS_AVX2)
    case Isa::kAvx2:
      return action_embed_avx2();
#endif
#if defined(VLAKERN_HAS_NEON)
    case Isa::kNeon:
      return action_embed_neon();
#endif
    default:
      return action_embed_scalar();
  }
}

}  // namespace

void action_embed_cpu(const ActionEmbedParams& p) {
  linear_cpu(p.first);
  if (p.silu_pass) {
    const SiluRow silu = choose_silu(p.first.isa);
    float* hidden = static_cast<float*>(p.first.out);
    parallel_for(p.first.threads, p.first.m, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        silu(hidden + r * p.first.out_stride, p.first.columns);
      }
    });
  }
  if (p.last) linear_cpu(*p.last);
}

}  // namespace vlakern
