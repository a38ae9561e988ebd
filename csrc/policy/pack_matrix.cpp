#include "policy/pack_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/number.h"
#include "common/thread_pool.h"

namespace vlakern {
namespace {

constexpr float kLevels = 127.0f;
constexpr float kLeast = 1e-30f;  // a row whose values are all smaller becomes zeros

const char* kind_name(LinearKind kind) {
  return kind == LinearKind::kBF16 ? "bf16" : kind == LinearKind::kF32 ? "fp32" : "int8";
}

// The weight row that is the panels' row `r` of a pair; n or more where it is padding.
std::int64_t source_row(std::int64_t pair, int r, std::int64_t n, bool gate) {
  if (!gate) return kPair * pair + r;
  const std::int64_t within = kPanel * pair + r % kPanel;
  if (within >= n / 2) return n;
  return r < kPanel ? within : n / 2 + within;
}

Tensor vector_at(std::uintptr_t address, std::int64_t count, DType dtype) {
  return {address, dtype, 1, {count}, {1}};
}

// One weight row into every step of its place; `at` is its first word.
class RowWriter {
 public:
  RowWriter(LinearKind kind, std::int64_t k) : kind_(kind), k_(k) {}

  // Returns the scale of int8.
  float write(const float* row, std::uint32_t* at) const {
    switch (kind_) {
      case LinearKind::kF32:
        for (std::int64_t i = 0; i < k_; ++i) std::memcpy(at + i * kPair, row + i, sizeof(float));
        return 0.0f;
      case LinearKind::kBF16:
        for (std::int64_t i = 0; i < k_; ++i) {
          put(at, i, 2, std::uint32_t{from_float<bf16>(row[i]).bits}, 16);
        }
        return 0.0f;
      default:
        return quantise(row, at);
    }
  }

 private:
  static void put(std::uint32_t* at, std::int64_t i, int group, std::uint32_t bits, int width) {
    at[i / group * kPair] |= bits << (i % group * width);
  }

  float quantise(const float* row, std::uint32_t* at) const {
    float most = 0.0f;
    for (std::int64_t i = 0; i < k_; ++i) most = std::max(most, std::fabs(row[i]));
    const bool some = most > kLeast;
    const float inverse = some ? kLevels / most : 0.0f;
    for (std::int64_t i = 0; i < k_; ++i) {
      float level = std::nearbyint(row[i] * inverse);
      if (!(std::fabs(level) <= kLevels)) level = 0.0f;
      put(at, i, 4, static_cast<std::uint32_t>(static_cast<int>(level) + 128), 8);
    }
    return some ? most / kLevels : 0.0f;
  }

  LinearKind kind_;
  std::int64_t k_;
};

}  // namespace

PackedMatrix pack_matrix(const Rows2D& weight, LinearKind kind, const std::vector<float>& bias,
                         bool gate, int threads) {
  const std::int64_t n = weight.n, k = weight.k, group = values_per_step(kind);
  const std::int64_t width = gate ? kPanel : kPair, columns = gate ? n / 2 : n;
  const std::int64_t pairs = (columns + width - 1) / width, steps = (k + group - 1) / group;
  const std::int64_t panels = pairs * steps * kPair;
  const std::int64_t scales = kind == LinearKind::kInt8 ? pairs * kPair : 0;
  const auto words = static_cast<std::size_t>(panels + scales + n);
  PackedMatrix packed{Block(words * 4), {}};
  auto* const at = packed.memory.as<std::uint32_t>();
  auto* const scale = packed.memory.as<float>() + panels;
  const RowWriter writer(kind, k);
  parallel_for(threads, pairs, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      std::memset(at + p * steps * kPair, 0, static_cast<std::size_t>(steps) * kStep);
      for (int r = 0; r < kPair; ++r) {
        const std::int64_t source = source_row(p, r, n, gate);
        const bool there = source < n;
        const float t = there ? writer.write(weight.row(source), at + p * steps * kPair + r) : 0.0f;
        if (scales > 0) scale[p * kPair + r] = t;
      }
    }
  });
  std::memset(at + panels + scales, 0, static_cast<std::size_t>(n) * 4);
  std::copy(bias.begin(), bias.end(), scale + scales);
  const std::uintptr_t address = packed.memory.address();
  PackedTensors& t = packed.tensors;
  t.panels = vector_at(address, panels, DType::kI32);
  const auto after = static_cast<std::uintptr_t>(panels) * 4;
  if (scales > 0) t.w_scale = vector_at(address + after, scales, DType::kF32);
  if (!bias.empty()) {
    t.bias = vector_at(address + after + static_cast<std::uintptr_t>(scales) * 4, n, DType::kF32);
  }
  t.n = n;
  t.k = k;
  t.kind = kind_name(kind);
  return packed;
}

}  // namespace vlakern
