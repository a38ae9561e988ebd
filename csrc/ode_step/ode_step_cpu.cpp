#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/cpu_features.h"
#include "common/thread_pool.h"
#include "ode_step/ode_step.h"
#include "ode_step/ode_step_update.h"

namespace vlakern {
namespace {

// Below this many bytes of traffic a second thread costs more than it saves.
constexpr std::int64_t kBytesPerThread = 1 << 20;

struct Plan {
  OdeStepUpdate update;
  int x_size;           // [bytes]
  int v_size;           // [bytes]
  bool slots_adjacent;  // every stride of A is 1
  bool rows_are_dense;  // positions of a row follow each other without a gap: one segment per row
  int threads;
};

OdeStepUpdate choose_update(Isa isa, const OdeStepVariant& variant) {
  switch (isa) {
#if defined(VLAKERN_HAS_AVX512_BF16)
    case Isa::kAvx512Bf16:
      return ode_step_avx512bf16(variant);
#endif
#if defined(VLAKERN_HAS_AVX512)
    case Isa::kAvx512:
      return ode_step_avx512(variant);
#endif
#if defined(VLAKERN_HAS_AVX2)
    case Isa::kAvx2:
      return ode_step_avx2(variant);
#endif
#if defined(VLAKERN_HAS_NEON)
    case Isa::kNeon:
      return ode_step_neon(variant);
#endif
    default:
      return ode_step_scalar(variant);
  }
}

Plan choose(const OdeStepParams& p, Isa isa, int threads) {
  const OdeStepVariant variant{p.x_dtype, p.v_dtype, p.v0 != nullptr, p.slot_mask != nullptr};
  Plan plan{};
  plan.update = choose_update(isa, variant);
  plan.x_size = dtype_size(p.x_dtype);
  plan.v_size = dtype_size(p.v_dtype);
  const auto adjacent = [](const std::int64_t (&s)[3]) { return s[2] == 1; };
  const auto dense = [&p](const std::int64_t (&s)[3]) { return s[2] == 1 && s[1] == p.slots; };
  plan.slots_adjacent = adjacent(p.x_stride) && adjacent(p.v_stride) && adjacent(p.x_out_stride) &&
                        (p.v0 == nullptr || adjacent(p.v0_stride)) &&
                        (p.frozen == nullptr || adjacent(p.frozen_stride)) &&
                        (p.slot_mask == nullptr || p.slot_mask_stride[1] == 1);
  plan.rows_are_dense = p.slot_mask == nullptr && dense(p.x_stride) && dense(p.v_stride) &&
                        dense(p.x_out_stride) && (p.v0 == nullptr || dense(p.v0_stride));
  const std::int64_t streams = 2 * plan.x_size + plan.v_size * (p.v0 == nullptr ? 1 : 2);
  const std::int64_t bytes = p.rows * p.positions * p.slots * streams;
  const int most = threads > 0 ? threads : default_threads();
  plan.threads = static_cast<int>(std::clamp<std::int64_t>(bytes / kBytesPerThread, 1, most));
  return plan;
}

const char* at(const void* base, std::int64_t elements, int size) {
  return base == nullptr ? nullptr : static_cast<const char*>(base) + elements * size;
}

std::int64_t offset(const std::int64_t (&s)[3], std::int64_t b, std::int64_t h) {
  return b * s[0] + h * s[1];
}

void gather(char* to, const char* from, std::int64_t stride, std::int64_t count, int size) {
  for (std::int64_t i = 0; i < count; ++i) {
    std::memcpy(to + i * size, from + i * stride * size, static_cast<std::size_t>(size));
  }
}

void scatter(char* to, const char* from, std::int64_t stride, std::int64_t count, int size) {
  for (std::int64_t i = 0; i < count; ++i) {
    std::memcpy(to + i * stride * size, from + i * size, static_cast<std::size_t>(size));
  }
}

// Slots that are not adjacent are packed in pieces, so that the arithmetic is the same code.
void update_strided(const OdeStepParams& p, const Plan& plan, const OdeStepSegment& row,
                    std::int64_t mask_stride) {
  constexpr std::int64_t kPiece = 128;
  alignas(64) char x[kPiece * 4], v[kPiece * 4], v0[kPiece * 4], mask[kPiece];
  for (std::int64_t a = 0; a < row.count; a += kPiece) {
    const std::int64_t n = std::min(kPiece, row.count - a);
    gather(x, at(row.x, a * p.x_stride[2], plan.x_size), p.x_stride[2], n, plan.x_size);
    gather(v, at(row.v, a * p.v_stride[2], plan.v_size), p.v_stride[2], n, plan.v_size);
    OdeStepSegment piece{x, v, nullptr, nullptr, x, n, row.a0, row.a1};
    if (row.v0 != nullptr) {
      gather(v0, at(row.v0, a * p.v0_stride[2], plan.v_size), p.v0_stride[2], n, plan.v_size);
      piece.v0 = v0;
    }
    if (row.mask != nullptr) {
      gather(mask, at(row.mask, a * mask_stride, 1), mask_stride, n, 1);
      piece.mask = reinterpret_cast<const std::uint8_t*>(mask);
    }
    plan.update(piece);
    char* out = static_cast<char*>(row.out) + a * p.x_out_stride[2] * plan.x_size;
    scatter(out, x, p.x_out_stride[2], n, plan.x_size);
  }
}

// Positions [h0, h1) of row b move along the velocity.
void integrate(const OdeStepParams& p, const Plan& plan, std::int64_t b, std::int64_t h0,
               std::int64_t h1) {
  const float dtau = p.dtau[b * p.dtau_stride];
  const std::int64_t together = plan.rows_are_dense ? h1 - h0 : 1;
  for (std::int64_t h = h0; h < h1; h += together) {
    OdeStepSegment s{};
    s.x = at(p.x, offset(p.x_stride, b, h), plan.x_size);
    s.v = at(p.v, offset(p.v_stride, b, h), plan.v_size);
    s.v0 = at(p.v0, offset(p.v0_stride, b, h), plan.v_size);
    s.mask = p.slot_mask == nullptr ? nullptr : p.slot_mask + b * p.slot_mask_stride[0];
    s.out = static_cast<char*>(p.x_out) + offset(p.x_out_stride, b, h) * plan.x_size;
    s.count = together * p.slots;
    s.a0 = dtau * p.c.c0;
    s.a1 = dtau * p.c.c1;
    if (plan.slots_adjacent) {
      plan.update(s);
    } else {
      update_strided(p, plan, s, p.slot_mask_stride[1]);
    }
  }
}

// Positions [h0, h1) of row b take the frozen values; memmove because frozen may be x_out itself.
void freeze(const OdeStepParams& p, const Plan& plan, std::int64_t b, std::int64_t h0,
            std::int64_t h1) {
  for (std::int64_t h = h0; h < h1; ++h) {
    const char* from = at(p.frozen, offset(p.frozen_stride, b, h), plan.x_size);
    char* to = static_cast<char*>(p.x_out) + offset(p.x_out_stride, b, h) * plan.x_size;
    if (plan.slots_adjacent) {
      std::memmove(to, from, static_cast<std::size_t>(p.slots * plan.x_size));
      continue;
    }
    for (std::int64_t a = 0; a < p.slots; ++a) {
      std::memmove(to + a * p.x_out_stride[2] * plan.x_size,
                   from + a * p.frozen_stride[2] * plan.x_size,
                   static_cast<std::size_t>(plan.x_size));
    }
  }
}

void advance_tau(const OdeStepParams& p, std::int64_t b, std::int64_t h, bool frozen) {
  const float tau = p.tau[b * p.tau_stride[0] + h * p.tau_stride[1]];
  const float next = std::fma(p.c.c_tau, p.dtau[b * p.dtau_stride], tau);
  p.tau_out[b * p.tau_out_stride[0] + h * p.tau_out_stride[1]] = frozen ? 1.0f : next;
}

void run_row(const OdeStepParams& p, const Plan& plan, std::int64_t b, std::int64_t h0,
             std::int64_t h1) {
  const std::int64_t length = p.frozen_len == nullptr ? 0 : p.frozen_len[b * p.frozen_len_stride];
  const std::int64_t first_free = std::clamp(length, h0, h1);
  freeze(p, plan, b, h0, first_free);
  integrate(p, plan, b, first_free, h1);
  if (p.tau_per_position) {
    for (std::int64_t h = h0; h < h1; ++h) advance_tau(p, b, h, h < first_free);
  } else if (h0 == 0) {
    advance_tau(p, b, 0, false);
  }
}

// Positions [begin, end) of the flattened [B, H].
void run_positions(const OdeStepParams& p, const Plan& plan, std::int64_t begin, std::int64_t end) {
  while (begin < end) {
    const std::int64_t b = begin / p.positions;
    const std::int64_t h0 = begin % p.positions;
    const std::int64_t h1 = std::min(p.positions, h0 + end - begin);
    run_row(p, plan, b, h0, h1);
    begin += h1 - h0;
  }
}

}  // namespace

void ode_step_cpu(const OdeStepTensors& t, bool tau_per_position, const OdeStepCoefficients& c,
                  const std::string& isa, int threads) {
  const OdeStepParams p = ode_step_params(t, tau_per_position, c);
  const Isa chosen = select_isa(isa);
  if (p.rows == 0) return;
  if (p.positions == 0) {
    for (std::int64_t b = 0; b < p.rows && !tau_per_position; ++b) advance_tau(p, b, 0, false);
    return;
  }
  const Plan plan = choose(p, chosen, threads);
  parallel_for(plan.threads, p.rows * p.positions,
               [&](std::int64_t begin, std::int64_t end) { run_positions(p, plan, begin, end); });
}

}  // namespace vlakern
