#include <algorithm>

#include "common/error.h"
#include "common/thread_pool.h"
#include "norm/norm.h"
#include "norm/norm_groups.h"
#include "norm/norm_row.h"

namespace vlakern {
namespace {

// Below this many bytes of traffic a second thread costs more than it saves.
constexpr std::int64_t kBytesPerThread = 1 << 16;

int choose_threads(const NormParams& p, int threads) {
  const int streams = p.residual.data == nullptr ? 2 : 4;
  const std::int64_t bytes = p.rows * p.width * streams * dtype_size(p.x.dtype);
  const int most = threads > 0 ? threads : default_threads();
  return static_cast<int>(std::clamp<std::int64_t>(bytes / kBytesPerThread, 1, most));
}

void run_rows(const NormParams& p, const NormKernels& kernels, std::int64_t begin,
              std::int64_t end) {
  NormVectors vectors(p, kernels);
  for (std::int64_t r = begin; r < end; ++r) {
    vectors.move_to(group_of(p, r));
    const std::int64_t next = std::min(r + 1, end - 1);
    kernels.forward({p.x.row(r), p.residual.row(r), vectors.gate(), vectors.a(), vectors.c(),
                     p.h.row(r), p.y.row(r), p.width, p.eps, p.x.row(next), p.residual.row(next)});
  }
}

}  // namespace

NormKernels norm_kernels(Isa isa, const NormVariant& variant) {
  switch (isa) {
#if defined(VLAKERN_HAS_AVX512_BF16)
    case Isa::kAvx512Bf16:
      return norm_avx512bf16(variant);
#endif
#if defined(VLAKERN_HAS_AVX512)
    case Isa::kAvx512:
      return norm_avx512(variant);
#endif
#if defined(VLAKERN_HAS_AVX2)
    case Isa::kAvx2:
      return norm_avx2(variant);
#endif
#if defined(VLAKERN_HAS_NEON)
    case Isa::kNeon:
      return norm_neon(variant);
#endif
    default:
      return norm_scalar(variant);
  }
}

void norm_cpu(const NormParams& p, Isa isa, int threads) {
  check_groups(p);
  if (p.residual.data != nullptr && p.h.data == nullptr) {
    throw InputError("norm: a call with a residual needs h");
  }
  const NormKernels kernels =
      norm_kernels(isa, {p.x.dtype, p.residual.dtype, p.kind == NormKind::kLayer});
  parallel_for(choose_threads(p, threads), p.rows,
               [&](std::int64_t begin, std::int64_t end) { run_rows(p, kernels, begin, end); });
}

}  // namespace vlakern
