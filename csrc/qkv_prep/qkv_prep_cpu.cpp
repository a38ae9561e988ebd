#include <algorithm>

#include "common/error.h"
#include "common/thread_pool.h"
#include "qkv_prep/qkv_prep.h"
#include "qkv_prep/qkv_prep_heads.h"
#include "qkv_prep/qkv_prep_weights.h"

namespace vlakern {
namespace {

// Below this many bytes of traffic a second thread costs more than it saves.
constexpr std::int64_t kBytesPerThread = 1 << 16;

// The memory may have changed since the call was bound, and a row outside leads out of memory.
void check_rows(const QkvPrepParams& p) {
  for (const QkvExpert& e : p.experts) {
    for (std::int64_t i = 0; i < e.end - e.begin; ++i) {
      const std::int64_t row = e.rows[i * e.rows_stride], to = row + p.row_offset;
      if (row >= 0 && row < p.angles && to >= 0 && to < p.out_rows) continue;
      throw InputError("qkv_prep: row " + std::to_string(row) + " with offset " +
                       std::to_string(p.row_offset) + " must lie in the " +
                       std::to_string(p.angles) + " rows of cos and the " +
                       std::to_string(p.out_rows) + " rows of k_out");
    }
  }
}

void run_token(const QkvPrepParams& p, const QkvKernels& kernels, const QkvExpert& e,
               const QkvWeights& weights, std::int64_t i) {
  const std::int64_t row = e.rows[i * e.rows_stride], to = row + p.row_offset;
  QkvHeads heads{};
  heads.cos = p.cos + row * p.cos_stride;
  heads.sin = p.sin + row * p.sin_stride;
  heads.factors = weights.factors;
  heads.half = p.half;
  heads.eps = p.eps;
  heads.x = e.q.row(i);
  heads.x_stride = e.q.head_stride;
  heads.y = e.q_out.row(i);
  heads.y_stride = e.q_out.head_stride;
  heads.weight = weights.q;
  heads.heads = p.heads;
  kernels.forward(heads);
  heads.x = e.k.row(i);
  heads.x_stride = e.k.head_stride;
  heads.y = p.k_out.row(to);
  heads.y_stride = p.k_out.head_stride;
  heads.weight = weights.k;
  heads.heads = p.groups;
  kernels.forward(heads);
  const std::int64_t from_step = e.v.head_stride * dtype_size(p.in);
  const std::int64_t to_step = p.v_out.head_stride * dtype_size(p.out);
  for (std::int64_t g = 0; g < p.groups; ++g) {
    kernels.copy(e.v.row(i) + g * from_step, p.v_out.row(to) + g * to_step, 2 * p.half);
  }
}

}  // namespace

QkvKernels qkv_prep_kernels(Isa isa, const QkvVariant& variant) {
  switch (isa) {
#if defined(VLAKERN_HAS_AVX512_BF16)
    case Isa::kAvx512Bf16:
      return qkv_prep_avx512bf16(variant);
#endif
#if defined(VLAKERN_HAS_AVX512)
    case Isa::kAvx512:
      return qkv_prep_avx512(variant);
#endif
#if defined(VLAKERN_HAS_AVX2)
    case Isa::kAvx2:
      return qkv_prep_avx2(variant);
#endif
#if defined(VLAKERN_HAS_NEON)
    case Isa::kNeon:
      return qkv_prep_neon(variant);
#endif
    default:
      return qkv_prep_scalar(variant);
  }
}

void qkv_prep_cpu(const QkvPrepParams& p, Isa isa, int threads) {
  check_rows(p);
  const QkvKernels kernels = qkv_prep_kernels(isa, {p.in, p.out});
  const std::int64_t width = (p.heads + 2 * p.groups) * 2 * p.half;
  const std::int64_t bytes = p.tokens * width * (dtype_size(p.in) + dtype_size(p.out));
  const std::int64_t most = threads > 0 ? threads : default_threads();
  const auto used = static_cast<int>(std::clamp<std::int64_t>(bytes / kBytesPerThread, 1, most));
  parallel_for(used, p.tokens, [&](std::int64_t begin, std::int64_t end) {
    for (const QkvExpert& e : p.experts) {
      const std::int64_t first = std::max(begin, e.begin), last = std::min(end, e.end);
      if (first >= last) continue;
      const QkvWeights weights(p, e, kernels);
      for (std::int64_t i = first; i < last; ++i) run_token(p, kernels, e, weights, i - e.begin);
    }
  });
}

}  // namespace vlakern
