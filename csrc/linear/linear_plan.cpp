#include "linear/linear_plan.h"

#include <algorithm>

namespace vlakern {
namespace {

constexpr std::int64_t kNearX = 512 << 10;  // bytes of packed x that share a core's cache
constexpr std::int64_t kSlab = 1024;        // steps of K where not all of them fit
constexpr std::int64_t kSlabPairs = 8;      // pairs whose sums wait while K advances
constexpr std::int64_t kSmall = 1 << 17;    // products below which one thread is enough

// Long chains cost least; bf16 outputs hide their error, integers have none.
std::int64_t chain_of(const LinearParams& p) {
  if (p.kind == LinearKind::kF32) return 32;
  return p.kind == LinearKind::kBF16 && p.out_dtype == DType::kF32 ? 64 : 512;
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t aligned(std::int64_t bytes) { return ceil_div(bytes, kLine) * kLine; }

}  // namespace

LinearKernels linear_kernels(Isa isa, const LinearVariant& v) {
#if defined(VLAKERN_HAS_AVX512_VNNI)
  if (v.kind == LinearKind::kInt8 && has_vnni(isa)) return linear_avx512vnni(v);
#endif
#if defined(VLAKERN_HAS_AVX2)
  const bool words = v.kind == LinearKind::kInt8;
  if (words && (isa == Isa::kAvx512Bf16 || isa == Isa::kAvx512)) return linear_avx2(v);
#endif
  switch (isa) {
#if defined(VLAKERN_HAS_AVX512_BF16)
    case Isa::kAvx512Bf16:
      return linear_avx512bf16(v);
#endif
#if defined(VLAKERN_HAS_AVX512)
    case Isa::kAvx512:
      return linear_avx512(v);
#endif
#if defined(VLAKERN_HAS_AVX2)
    case Isa::kAvx2:
      return linear_avx2(v);
#endif
#if defined(VLAKERN_HAS_NEON)
    case Isa::kNeon:
      return linear_neon(v);
#endif
    default:
      return linear_scalar(v);
  }
}

LinearPlan linear_plan(const LinearParams& p) {
  LinearPlan plan{};
  plan.kernels = linear_kernels(p.isa, {p.kind, p.x_dtype, p.out_dtype, p.activation});
  const LinearKernels& k = plan.kernels;
  const bool one = k.rows_two == 0 || (p.m > k.rows_two && p.m <= k.rows_one);
  plan.panels = one ? 1 : 2;
  plan.blocks = std::max<std::int64_t>(1, ceil_div(p.m, one ? k.rows_one : k.rows_two));
  const std::int64_t row_bytes = std::max<std::int64_t>(1, p.steps * k.x_size);
  plan.chain = chain_of(p);
  plan.slab = std::max<std::int64_t>(1, p.steps);
  plan.group = plan.blocks;
  std::int64_t waiting = 1;
  if (p.m * row_bytes > kNearX) {
    if (p.steps > 2 * kSlab) {
      plan.slab = kSlab;
      waiting = kSlabPairs;
    }
    const std::int64_t rows = std::max<std::int64_t>(1, kNearX / (plan.slab * k.x_size));
    const std::int64_t per_block = ceil_div(p.m, plan.blocks);
    const std::int64_t most = std::max<std::int64_t>(1, rows / per_block);
    plan.group = ceil_div(plan.blocks, ceil_div(plan.blocks, most));
  }
  const bool small = p.m * p.n * p.k < kSmall;
  plan.threads = small ? 1 : static_cast<int>(std::min<std::int64_t>(p.threads, p.pairs));
  plan.threads = std::max(1, plan.threads);
  // A larger job brings all its workers, however small the product.
  const auto workers = std::max<std::int64_t>(1, std::min<std::int64_t>(p.threads, p.pairs));
  plan.chunk = std::max(waiting, ceil_div(p.pairs, workers * 8));
  plan.chunk = std::max<std::int64_t>(1, std::min(plan.chunk, p.pairs));
  const std::int64_t per_block = ceil_div(p.m, plan.blocks);
  const std::int64_t pairs = waiting == 1 ? 1 : plan.chunk;
  plan.worker_tiles = aligned(pairs * plan.group * per_block * kPair * 4);
  plan.packed = aligned(p.m * row_bytes);
  plan.scales = plan.packed;
  plan.tiles = plan.scales + aligned(p.kind == LinearKind::kInt8 ? 3 * p.m * 4 : 0);
  plan.bytes = plan.tiles + std::max(1, p.threads) * plan.worker_tiles;
  plan.bytes += kLine;  // its start is aligned
  return plan;
}

}  // namespace vlakern
