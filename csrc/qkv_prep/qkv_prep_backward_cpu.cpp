#include <algorithm>
#include <vector>

#include "common/thread_pool.h"
#include "qkv_prep/qkv_prep.h"
#include "qkv_prep/qkv_prep_heads.h"
#include "qkv_prep/qkv_prep_weights.h"

namespace vlakern {
namespace {

// Sums over the heads of one token, then added to its run's.
struct TokenSums {
  std::vector<float> memory;
  float* q;      // [D]
  float* k;      // [D]
  float* carry;  // [2, D] of the run's sums

  explicit TokenSums(std::int64_t width)
      : memory(static_cast<std::size_t>(4 * width)),
        q(memory.data()),
        k(memory.data() + width),
        carry(memory.data() + 2 * width) {}
};

void run_token(const QkvPrepGradientParams& s, const QkvKernels& kernels, std::size_t which,
               const QkvWeights& weights, TokenSums& sums, std::int64_t i) {
  const QkvPrepParams& p = s.op;
  const QkvExpert& e = p.experts[which];
  const QkvGradient& g = s.experts[which];
  const std::int64_t row = e.rows[i * e.rows_stride];
  QkvBackHeads heads{};
  heads.cos = p.cos + row * p.cos_stride;
  heads.sin = p.sin + row * p.sin_stride;
  if (s.dcos != nullptr) {
    heads.dcos = s.dcos + row * p.half;
    heads.dsin = s.dsin + row * p.half;
    std::fill_n(heads.dcos, p.half, 0.0f);
    std::fill_n(heads.dsin, p.half, 0.0f);
  }
  heads.half = p.half;
  heads.eps = p.eps;
  const std::int64_t next = std::min(i + 1, e.end - e.begin - 1);
  const auto run = [&](const QkvMatrix& x, const QkvMatrix& dx, const char* dy,
                       std::int64_t dy_stride, std::int64_t count) {
    heads.next_x = x.row(next);
    heads.x = x.row(i);
    heads.x_stride = x.head_stride;
    heads.dx = dx.row(i);
    heads.dx_stride = dx.head_stride;
    heads.dy = dy;
    heads.dy_stride = dy_stride;
    heads.heads = count;
    kernels.backward(heads);
  };
  heads.weight = weights.q;
  heads.dweight = weights.q == nullptr ? nullptr : sums.q;
  heads.next_dy = e.q_out.row(next);
  run(e.q, g.dq, e.q_out.row(i), e.q_out.head_stride, p.heads);
  heads.weight = weights.k;
  heads.dweight = weights.k == nullptr ? nullptr : sums.k;
  heads.next_dy = p.k_out.row(e.rows[next * e.rows_stride]);
  run(e.k, g.dk, p.k_out.row(row), p.k_out.head_stride, p.groups);
  const int size = dtype_size(p.in);
  for (std::int64_t head = 0; head < p.groups; ++head) {
    kernels.copy_back(p.v_out.row(row) + head * p.v_out.head_stride * size,
                      g.dv.row(i) + head * g.dv.head_stride * size, 2 * p.half);
  }
}

// Run `run` of one expert's tokens.
void run_run(const QkvPrepGradientParams& s, const QkvKernels& kernels, std::size_t which,
             std::int64_t run) {
  const QkvExpert& e = s.op.experts[which];
  const std::int64_t width = 2 * s.op.half;
  const QkvWeights weights(s.op, e, kernels);
  float* partial = s.experts[which].partial;
  if (partial != nullptr) {
    partial += run * 2 * width;
    std::fill_n(partial, 2 * width, 0.0f);
  }
  TokenSums sums(width);
  const std::int64_t end = std::min(e.end - e.begin, (run + 1) * kQkvRun);
  for (std::int64_t i = run * kQkvRun; i < end; ++i) {
    std::fill_n(sums.q, 2 * width, 0.0f);
    run_token(s, kernels, which, weights, sums, i);
    if (partial != nullptr) kernels.accumulate(sums.q, partial, sums.carry, 2 * width);
  }
}

void finish(const QkvPrepGradientParams& s, const QkvKernels& kernels) {
  const std::int64_t width = 2 * s.op.half;
  for (std::size_t which = 0; which < s.experts.size(); ++which) {
    const QkvGradient& g = s.experts[which];
    if (g.q_weight == nullptr) continue;
    const QkvExpert& e = s.op.experts[which];
    std::fill_n(g.q_weight, width, 0.0f);
    std::fill_n(g.k_weight, width, 0.0f);
    std::vector<float> carry(static_cast<std::size_t>(2 * width));
    for (std::int64_t run = 0; run < qkv_prep_runs(e.end - e.begin); ++run) {
      kernels.accumulate(g.partial + run * 2 * width, g.q_weight, carry.data(), width);
      kernels.accumulate(g.partial + (run * 2 + 1) * width, g.k_weight, carry.data() + width,
                         width);
    }
  }
}

}  // namespace

void qkv_prep_backward_cpu(const QkvPrepGradientParams& s, Isa isa, int threads) {
  constexpr std::int64_t kTokensPerThread = 32;
  const QkvKernels kernels = qkv_prep_kernels(isa, {s.op.in, s.op.in});
  std::vector<std::int64_t> first{0};  // run of each expert, counted over all
  for (const QkvExpert& e : s.op.experts) {
    first.push_back(first.back() + qkv_prep_runs(e.end - e.begin));
  }
  const std::int64_t most = threads > 0 ? threads : default_threads();
  const auto used =
      static_cast<int>(std::clamp<std::int64_t>(s.op.tokens / kTokensPerThread, 1, most));
  parallel_for(used, first.back(), [&](std::int64_t begin, std::int64_t end) {
    for (std::size_t which = 0; which < s.experts.size(); ++which) {
      const std::int64_t from = std::max(begin, first[which]);
      for (std::int64_t run = from; run < std::min(end, first[which + 1]); ++run) {
        run_run(s, kernels, which, run - first[which]);
      }
    }
  });
  finish(s, kernels);
}

}  // namespace vlakern
