#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "common/cpu_features.h"
#include "common/thread_pool.h"
#include "common/vec_scalar.h"
#include "flow_loss/flow_loss.h"
#include "flow_loss/flow_loss_block.h"

namespace vlakern {
namespace {

// Below this many elements a second thread costs more than it saves.
constexpr std::int64_t kElementsPerThread = 1 << 15;
constexpr std::uint32_t kTauStream = 1;

struct Plan {
  FlowKernels kernels;
  std::int64_t elements;  // H A
  bool dense;             // a row is contiguous in every tensor
  int size;               // of x or of the velocity [bytes]
  int mask_size;          // [bytes]
  int threads;
};

FlowKernels choose_kernels(Isa isa, DType dtype, bool mask_is_u8) {
  switch (isa) {
#if defined(VLAKERN_HAS_AVX512_BF16)
    case Isa::kAvx512Bf16:
      return flow_loss_avx512bf16(dtype, mask_is_u8);
#endif
#if defined(VLAKERN_HAS_AVX512)
    case Isa::kAvx512:
      return flow_loss_avx512(dtype, mask_is_u8);
#endif
#if defined(VLAKERN_HAS_AVX2)
    case Isa::kAvx2:
      return flow_loss_avx2(dtype, mask_is_u8);
#endif
#if defined(VLAKERN_HAS_NEON)
    case Isa::kNeon:
      return flow_loss_neon(dtype, mask_is_u8);
#endif
    default:
      return flow_loss_scalar(dtype, mask_is_u8);
  }
}

Plan choose(const FlowParams& p, const std::string& isa, int threads) {
  Plan plan{};
  plan.kernels = choose_kernels(select_isa(isa), p.dtype, p.mask_is_u8);
  plan.elements = p.positions * p.slot_count;
  plan.size = dtype_size(p.dtype);
  plan.mask_size = p.mask_is_u8 ? 1 : 4;
  const auto dense = [&p](const void* base, const std::int64_t (&s)[3]) {
    return base == nullptr || (s[2] == 1 && s[1] == p.slot_count);
  };
  plan.dense = dense(p.action, p.action_stride) && dense(p.noise, p.noise_stride) &&
               dense(p.velocity, p.velocity_stride) && dense(p.mask, p.mask_stride) &&
               dense(p.out, p.out_stride);
  const int most = threads > 0 ? threads : default_threads();
  const std::int64_t useful = p.row_count * plan.elements / kElementsPerThread;
  plan.threads = static_cast<int>(std::clamp<std::int64_t>(useful, 1, most));
  return plan;
}

std::int64_t address_of(const FlowParams& p, std::int64_t r) {
  return p.rows == nullptr ? r : p.rows[r * p.rows_stride];
}

// u of [0, 1) or a normal from the row's own words.
float draw_tau(const FlowParams& p, std::int64_t r) {
  const PhiloxAddress at{p.seed, static_cast<std::uint64_t>(address_of(p, r)), kTauStream};
  std::uint32_t drawn[1][4];
  philox_words<VecScalar>(at, 0, 0, drawn);
  const auto& words = drawn[0];
  const double u = static_cast<double>(words[0] >> 8) * 0x1p-24;
  switch (p.law.law) {
    case TauLaw::kUniform:
      return static_cast<float>(u);
    case TauLaw::kBeta:
      return static_cast<float>((p.law.s - std::pow(u, 1 / p.law.alpha)) / p.law.s);
    default:
      break;
  }
  constexpr double kTwoPi = 6.283185307179586;
  const double turn = static_cast<double>(words[1] >> 8) * 0x1p-24;
  const double normal = std::sqrt(-2 * std::log(u + 0x1p-24)) * std::cos(kTwoPi * turn);
  return static_cast<float>(1 / (1 + std::exp(-normal)));
}

// One thread's room: what is repeated along a row, written out, and a block of every tensor.
class Room {
 public:
  Room(const FlowParams& p, const Plan& plan) : p_(p), plan_(plan) {
    if (p.slots != nullptr) slots_.resize(padded());
    if (p.tau_columns > 1) taus_.resize(padded());
    if (p.velocity != nullptr && p.mask == nullptr) {
      ones_.assign(padded(), 0.0f);
      std::fill_n(ones_.begin(), plan.elements, 1.0f);
    }
  }

  // Calls kernel(blocks) over the whole of row r.
  template <class Kernel>
  void run(std::int64_t r, float tau, float coefficient, const Kernel& kernel) {
    const std::int64_t b = r / p_.per_sample;
    spread_slots(b);
    if (!taus_.empty()) spread_taus(r);
    FlowBlocks s{};
    s.tau = tau;
    s.coefficient = coefficient;
    s.address = {p_.seed, static_cast<std::uint64_t>(address_of(p_, r)), 0};
    const std::int64_t whole = plan_.dense ? plan_.elements / kFlowBlock : 0;
    if (whole > 0) {
      s.count = whole;
      kernel(direct(s, r, b));
    }
    for (std::int64_t k = whole; k * kFlowBlock < plan_.elements; ++k) {
      s.first = k;
      s.count = 1;
      const std::int64_t n = std::min(kFlowBlock, plan_.elements - k * kFlowBlock);
      s.half = 2 * n <= kFlowBlock;
      kernel(packed(s, r, b, n));
      if (p_.out != nullptr) {
        copy(out_, row(p_.out, p_.out_stride, r, plan_.size), p_.out_stride, k, n, plan_.size,
             false);
      }
    }
  }

 private:
  std::size_t padded() const {
    return static_cast<std::size_t>((plan_.elements + kFlowBlock - 1) / kFlowBlock * kFlowBlock);
  }

  void spread_slots(std::int64_t b) {
    if (slots_.empty() || b == slots_of_) return;
    slots_of_ = b;
    const float* from = p_.slots + b * p_.slots_stride[0];
    for (std::int64_t a = 0; a < p_.slot_count; ++a) {
      slots_[static_cast<std::size_t>(a)] = from[a * p_.slots_stride[1]];
    }
    for (std::int64_t h = 1; h < p_.positions; ++h) {
      std::copy_n(slots_.begin(), p_.slot_count, slots_.begin() + h * p_.slot_count);
    }
  }

  void spread_taus(std::int64_t r) {
    for (std::int64_t h = 0; h < p_.positions; ++h) {
      const float tau = p_.tau[r * p_.tau_stride[0] + h * p_.tau_stride[1]];
      std::fill_n(taus_.begin() + h * p_.slot_count, p_.slot_count, tau);
    }
  }

  template <int kRank>
  static char* row(const void* base, const std::int64_t (&stride)[kRank], std::int64_t r,
                   int size) {
    return static_cast<char*>(const_cast<void*>(base)) + r * stride[0] * size;
  }

  static const float* from(const std::vector<float>& values, std::int64_t block) {
    return values.empty() ? nullptr : values.data() + block * kFlowBlock;
  }

  FlowBlocks direct(FlowBlocks s, std::int64_t r, std::int64_t b) const {
    s.action = p_.action + b * p_.action_stride[0];
    if (p_.noise != nullptr) s.noise = p_.noise + r * p_.noise_stride[0];
    s.slots = from(slots_, 0);
    s.taus = from(taus_, 0);
    s.mask = ones_.data();
    if (p_.mask != nullptr) s.mask = row(p_.mask, p_.mask_stride, b, plan_.mask_size);
    if (p_.velocity != nullptr) s.velocity = row(p_.velocity, p_.velocity_stride, r, plan_.size);
    if (p_.out != nullptr) s.out = row(p_.out, p_.out_stride, r, plan_.size);
    return s;
  }

  FlowBlocks packed(FlowBlocks s, std::int64_t r, std::int64_t b, std::int64_t n) {
    const auto pack = [&](char* to, const void* base, const std::int64_t (&stride)[3],
                          std::int64_t i, int size) {
      if (n < filled_) std::memset(to, 0, static_cast<std::size_t>(kFlowBlock * size));
      copy(to, row(base, stride, i, size), stride, s.first, n, size, true);
      return to;
    };
    s.action = reinterpret_cast<float*>(pack(action_, p_.action, p_.action_stride, b, 4));
    if (p_.noise != nullptr) {
      s.noise = reinterpret_cast<float*>(pack(noise_, p_.noise, p_.noise_stride, r, 4));
    }
    s.slots = from(slots_, s.first);
    s.taus = from(taus_, s.first);
    s.mask = from(ones_, s.first);
    if (p_.mask != nullptr) s.mask = pack(mask_, p_.mask, p_.mask_stride, b, plan_.mask_size);
    if (p_.velocity != nullptr) {
      s.velocity = pack(velocity_, p_.velocity, p_.velocity_stride, r, plan_.size);
    }
    s.out = out_;
    filled_ = n;
    return s;
  }

  // Between a block and the n elements of a row that it stands for.
  void copy(char* block, char* row, const std::int64_t (&stride)[3], std::int64_t k, std::int64_t n,
            int size, bool to_block) const {
    if (plan_.dense) {
      char* part = row + k * kFlowBlock * size;
      std::memcpy(to_block ? block : part, to_block ? part : block,
                  static_cast<std::size_t>(n * size));
      return;
    }
    std::int64_t h = k * kFlowBlock / p_.slot_count;
    std::int64_t a = k * kFlowBlock % p_.slot_count;
    for (std::int64_t i = 0; i < n; ++i) {
      char* one = row + (h * stride[1] + a * stride[2]) * size;
      char* packed = block + i * size;
      std::memcpy(to_block ? packed : one, to_block ? one : packed, static_cast<std::size_t>(size));
      if (++a == p_.slot_count) {
        a = 0;
        ++h;
      }
    }
  }

  const FlowParams& p_;
  const Plan& plan_;
  std::vector<float> slots_, taus_, ones_;
  std::int64_t slots_of_ = -1;
  std::int64_t filled_ = kFlowBlock;  // elements of a packed block, past which there are zeros
  alignas(64) char action_[kFlowBlock * 4], noise_[kFlowBlock * 4], velocity_[kFlowBlock * 4],
      mask_[kFlowBlock * 4], out_[kFlowBlock * 4];
};

// The tau of a row, also written where the caller wants it.
float place_tau(const FlowParams& p, std::int64_t r) {
  float* out = p.tau_out + r * p.tau_out_stride[0];
  float tau = 0;
  for (std::int64_t t = 0; t < p.tau_columns; ++t) {
    tau = p.tau == nullptr ? draw_tau(p, r) : p.tau[r * p.tau_stride[0] + t * p.tau_stride[1]];
    out[t * p.tau_out_stride[1]] = tau;
  }
  return tau;
}

struct Sums {
  double error;
  double mask;
};

std::int64_t group_of(const FlowParams& p, std::int64_t r) {
  const std::int64_t g = p.group == nullptr ? 0 : p.group[r / p.per_sample * p.group_stride];
  if (g < 0 || g >= p.groups) {
    Dims("flow_loss")
        .fail("group has the value " + std::to_string(g) + ", expected 0 to " +
              std::to_string(p.groups - 1));
  }
  return g;
}

Sums total(const FlowSums& lanes) {
  Sums sums{};
  for (int i = 0; i < kFlowLanes; ++i) {
    sums.error += lanes.error[i];
    sums.mask += lanes.mask[i];
  }
  return sums;
}

// Rows to groups to the loss, in order.
void finish(const FlowParams& p, const std::vector<Sums>& rows) {
  std::vector<Sums> sums(static_cast<std::size_t>(p.groups));
  std::vector<double> weights(sums.size());  // 0 of a group that does not occur
  for (std::int64_t r = 0; r < p.row_count; ++r) {
    const std::int64_t g = group_of(p, r);
    const auto& [error, mask] = rows[static_cast<std::size_t>(r)];
    sums[static_cast<std::size_t>(g)].error += error;
    sums[static_cast<std::size_t>(g)].mask += mask;
    weights[static_cast<std::size_t>(g)] =
        p.weights == nullptr ? 1.0 : static_cast<double>(p.weights[g * p.weights_stride]);
  }
  const double all = std::accumulate(weights.begin(), weights.end(), 0.0);
  double loss = 0;
  for (std::size_t g = 0; g < sums.size(); ++g) {
    const double share = weights[g] == 0 ? 0.0 : weights[g] / all / (sums[g].mask + 1e-8);
    p.coefficients[static_cast<std::int64_t>(g) * p.coefficients_stride] =
        static_cast<float>(2 * share);
    if (weights[g] != 0) loss += share * sums[g].error;
  }
  *p.loss = static_cast<float>(loss);
}

}  // namespace

void flow_mix_cpu(const FlowParams& p, const std::string& isa, int threads) {
  const Plan plan = choose(p, isa, threads);
  parallel_for(plan.threads, p.row_count, [&](std::int64_t begin, std::int64_t end) {
    Room room(p, plan);
    for (std::int64_t r = begin; r < end; ++r) {
      room.run(r, place_tau(p, r), 0.0f, plan.kernels.mix);
    }
  });
}

void flow_loss_cpu(const FlowParams& p, const std::string& isa, int threads) {
  const Plan plan = choose(p, isa, threads);
  std::vector<Sums> rows(static_cast<std::size_t>(p.row_count));
  parallel_for(plan.threads, p.row_count, [&](std::int64_t begin, std::int64_t end) {
    Room room(p, plan);
    for (std::int64_t r = begin; r < end; ++r) {
      FlowSums lanes{};
      room.run(r, 0.0f, 0.0f, [&](const FlowBlocks& s) { plan.kernels.loss(s, &lanes); });
      rows[static_cast<std::size_t>(r)] = total(lanes);
    }
  });
  finish(p, rows);
}

void flow_loss_gradient_cpu(const FlowParams& p, float scale, const std::string& isa, int threads) {
  const Plan plan = choose(p, isa, threads);
  for (std::int64_t r = 0; r < p.row_count; ++r) group_of(p, r);
  parallel_for(plan.threads, p.row_count, [&](std::int64_t begin, std::int64_t end) {
    Room room(p, plan);
    for (std::int64_t r = begin; r < end; ++r) {
      const float coefficient = scale * p.coefficients[group_of(p, r) * p.coefficients_stride];
      room.run(r, 0.0f, coefficient, plan.kernels.gradient);
    }
  });
}

}  // namespace vlakern
