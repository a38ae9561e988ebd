#include "linear/linear_plan.h"

#include <algorithm>

namespace vlakern {
namespace {

constexpr std::int64_t kNearX = 512 << 10;  // bytes of packed x that share a core's cache
constexpr std::int64_t kGroupBlocks = 4;    // that make a product slower than its weights' stream
constexpr std::int64_t kMostWaiting = 4;    // pairs whose sums wait while K advances
constexpr std::int64_t kLeastUnit = 64 << 10;  // bytes of weights times blocks, some 2 us
constexpr std::int64_t kSmall = 1 << 17;       // products below which one thread is enough

constexpr std::int64_t kLongestChain = 512;

// Long chains cost least; bf16 outputs hide their error, integers have none.
std::int64_t chain_of(const LinearParams& p) {
  if (p.kind == LinearKind::kF32) return 32;
  return p.kind == LinearKind::kBF16 && p.out_dtype == DType::kF32 ? 64 : kLongestChain;
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t aligned(std::int64_t bytes) { return ceil_div(bytes, kLine) * kLine; }

// All of K where enough blocks of x fit with it, else as few equal slabs as let them.
void cut_rows_and_steps(const LinearParams& p, LinearPlan& plan) {
  const std::int64_t per_block = std::max<std::int64_t>(1, ceil_div(p.m, plan.blocks));
  const std::int64_t least_rows = per_block * std::min(plan.blocks, kGroupBlocks);
  const std::int64_t steps = std::max<std::int64_t>(1, p.steps), size = plan.kernels.x_size;
  const std::int64_t slabs = ceil_div(least_rows * steps * size, kNearX);
  plan.slab = slabs == 1 ? steps : ceil_div(ceil_div(steps, slabs), kLongestChain) * kLongestChain;
  const std::int64_t fit = std::max<std::int64_t>(1, kNearX / (plan.slab * size * per_block));
  plan.groups = ceil_div(plan.blocks, fit);
}

// Returns how many pairs' sums wait at a time.
std::int64_t cut_pairs(const LinearParams& p, LinearPlan& plan, std::int64_t workers) {
  const bool slabs = plan.slab < p.steps;
  const std::int64_t bytes = std::max<std::int64_t>(1, p.steps * kStep * plan.blocks / plan.groups);
  const std::int64_t even = std::max<std::int64_t>(1, ceil_div(p.pairs, workers * 8));
  plan.long_chunk = slabs ? std::min(even, kMostWaiting) : even;
  plan.short_chunk = std::min(even, ceil_div(kLeastUnit, bytes));
  plan.long_chunks = p.pairs * 3 / 4 / plan.long_chunk;
  const std::int64_t rest = p.pairs - plan.long_chunks * plan.long_chunk;
  plan.chunks = plan.long_chunks + ceil_div(rest, plan.short_chunk);
  return slabs ? plan.long_chunk : 1;
}

}  // namespace

LinearKernels linear_kernels(Isa isa, const LinearVariant& v) {
#if defined(VLAKERN_HAS_AVX512_VNNI)
  if (v.kind == LinearKind::kInt8 && has_vnni(isa)) return linear_avx512vnni(v);
#endif
#if defined(VLAKERN_HAS_AVX2)
  const bool words = v.kind == LinearKind::kInt8;
  if (words && (isa == Isa::kAvx512Bf16 || isa == Isa::kAvx512)) return linear_avx2(v);
#endif
#if defined(VLAKERN_HAS_AVX512)
  if (v.kind == LinearKind::kF32 && isa == Isa::kAvx512Bf16) return linear_avx512(v);
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
  plan.chain = chain_of(p);
  cut_rows_and_steps(p, plan);
  const bool small = p.m * p.n * p.k < kSmall;
  const auto workers = std::max<std::int64_t>(1, std::min<std::int64_t>(p.threads, p.pairs));
  plan.threads = small ? 1 : static_cast<int>(workers);
  const std::int64_t waiting = cut_pairs(p, plan, workers);
  const std::int64_t rows = ceil_div(p.m, plan.blocks) * ceil_div(plan.blocks, plan.groups);
  plan.worker_tiles = aligned(waiting * rows * kPair * 4);
  plan.scales = aligned(p.m * p.steps * k.x_size);
  plan.tiles = plan.scales + aligned(p.kind == LinearKind::kInt8 ? 3 * p.m * 4 : 0);
  plan.bytes = plan.tiles + std::max(1, p.threads) * plan.worker_tiles;
  plan.bytes += kLine;  // its start is aligned
  return plan;
}

}  // namespace vlakern
