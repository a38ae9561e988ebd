// The inner loops of flow_mix and flow_loss for one instruction set; included by one translation
// unit per ISA.
#pragma once

#include "common/philox.h"
#include "flow_loss/flow_loss_block.h"

namespace vlakern {
namespace {

// The four runs of lanes `part`, ... of kCount blocks from `block` on: noise, weighted by the
// slots.
template <class Vec, int kCount>
inline void block_noise(const FlowBlocks& s, std::int64_t block, int part,
                        typename Vec::Float (&z)[kCount][4]) {
  constexpr int kLanes = Vec::kLanes;
  const std::int64_t at = block * kFlowBlock + part;
  if (s.noise == nullptr) {
    const auto first = static_cast<std::uint32_t>((s.first + block) * kFlowLanes + part);
    philox_normals<Vec>(s.address, first, kFlowLanes, s.half, z);
  } else {
    for (int i = 0; i < 4 * kCount; ++i)
      z[i / 4][i % 4] = Vec::load(s.noise + at + i * kFlowLanes, kLanes);
  }
  if (s.slots == nullptr) return;
  for (int i = 0; i < 4 * kCount; ++i) {
    z[i / 4][i % 4] = Vec::mul(z[i / 4][i % 4], Vec::load(s.slots + at + i * kFlowLanes, kLanes));
  }
}

// body(block, part, z) for all noise, in the order of the blocks for every part.
template <class Vec, class Body>
inline void each_noise(const FlowBlocks& s, const Body& body) {
  constexpr int kTogether = Vec::kLanes == kFlowLanes ? 2 : 1;
  std::int64_t block = 0;
  for (; block + kTogether <= s.count; block += kTogether) {
    for (int part = 0; part < kFlowLanes; part += Vec::kLanes) {
      typename Vec::Float z[kTogether][4];
      block_noise<Vec>(s, block, part, z);
      for (int k = 0; k < kTogether; ++k) body(block + k, part, z[k]);
    }
  }
  for (; block < s.count; ++block) {
    typename Vec::Float z[1][4];
    block_noise<Vec>(s, block, 0, z);
    body(block, 0, z[0]);
  }
}

template <class Vec, class X>
void mix_blocks(const FlowBlocks& given) {
  constexpr int kLanes = Vec::kLanes;
  const FlowBlocks s = given;  // a copy, since no store can change that
  each_noise<Vec>(s, [&](std::int64_t block, int part, const auto& z) {
    for (int w = 0; w < 4; ++w) {
      const std::int64_t at = block * kFlowBlock + w * kFlowLanes + part;
      const auto tau = s.taus == nullptr ? Vec::splat(s.tau) : Vec::load(s.taus + at, kLanes);
      const auto rest = Vec::mul(Vec::sub(Vec::splat(1.0f), tau), z[w]);
      const auto x = Vec::fma(tau, Vec::load(s.action + at, kLanes), rest);
      Vec::store(static_cast<X*>(s.out) + at, x, kLanes);
    }
  });
}

template <class Vec>
inline typename Vec::Float load_mask(const float* p) {
  return Vec::load(p, Vec::kLanes);
}

template <class Vec>
inline typename Vec::Float load_mask(const std::uint8_t* p) {
  return Vec::select(Vec::nonzero(p, Vec::kLanes), Vec::splat(1.0f), Vec::splat(0.0f));
}

// v - (a - z), and 0 where it does not count.
template <class Vec, class V>
inline typename Vec::Float error_of(const FlowBlocks& s, std::int64_t at, typename Vec::Float z,
                                    typename Vec::Float mask) {
  const auto target = Vec::sub(Vec::load(s.action + at, Vec::kLanes), z);
  const auto velocity = Vec::load(static_cast<const V*>(s.velocity) + at, Vec::kLanes);
  const auto zero = Vec::splat(0.0f);
  return Vec::select(Vec::less(zero, Vec::abs(mask)), Vec::sub(velocity, target), zero);
}

template <class Vec, class V, class M>
void loss_blocks(const FlowBlocks& given, FlowSums* sums) {
  const FlowBlocks s = given;  // a copy, since no store can change that
  each_noise<Vec>(s, [&](std::int64_t block, int part, const auto& z) {
    auto errors = Vec::splat(0.0f), masks = Vec::splat(0.0f);
    for (int w = 0; w < 4; ++w) {
      const std::int64_t at = block * kFlowBlock + w * kFlowLanes + part;
      const auto mask = load_mask<Vec>(static_cast<const M*>(s.mask) + at);
      const auto error = error_of<Vec, V>(s, at, z[w], mask);
      errors = Vec::fma(Vec::mul(mask, error), error, errors);
      masks = Vec::add(masks, mask);
    }
    Vec::accumulate(sums->error + part, errors);
    Vec::accumulate(sums->mask + part, masks);
  });
}

template <class Vec, class V, class M>
void gradient_blocks(const FlowBlocks& given) {
  constexpr int kLanes = Vec::kLanes;
  const FlowBlocks s = given;  // a copy, since no store can change that
  each_noise<Vec>(s, [&](std::int64_t block, int part, const auto& z) {
    for (int w = 0; w < 4; ++w) {
      const std::int64_t at = block * kFlowBlock + w * kFlowLanes + part;
      const auto mask = load_mask<Vec>(static_cast<const M*>(s.mask) + at);
      const auto error = error_of<Vec, V>(s, at, z[w], mask);
      const auto slope = Vec::mul(Vec::splat(s.coefficient), Vec::mul(mask, error));
      Vec::store(static_cast<V*>(s.out) + at, slope, kLanes);
    }
  });
}

template <class Vec, class X>
FlowKernels pick_mask(bool mask_is_u8) {
  if (mask_is_u8) {
    return {mix_blocks<Vec, X>, loss_blocks<Vec, X, std::uint8_t>,
            gradient_blocks<Vec, X, std::uint8_t>};
  }
  return {mix_blocks<Vec, X>, loss_blocks<Vec, X, float>, gradient_blocks<Vec, X, float>};
}

template <class Vec>
FlowKernels pick_kernels(DType dtype, bool mask_is_u8) {
  if (dtype == DType::kBF16) return pick_mask<Vec, bf16>(mask_is_u8);
  if (dtype == DType::kF16) return pick_mask<Vec, f16>(mask_is_u8);
  return pick_mask<Vec, float>(mask_is_u8);
}

}  // namespace
}  // namespace vlakern
