// Four fp32 lanes of AArch64 NEON; `n` is how many leading lanes of memory may be touched.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "common/number.h"

namespace vlakern {
namespace {

struct VecNeon {
  static constexpr int kLanes = 4;
  using Float = float32x4_t;
  using Mask = uint32x4_t;
  using Bits = uint32x4_t;

  static Float load(const float* p, int n) {
    if (n == kLanes) return vld1q_f32(p);
    float lanes[kLanes] = {};
    std::memcpy(lanes, p, sizeof(float) * static_cast<std::size_t>(n));
    return vld1q_f32(lanes);
  }
  static Float load(const bf16* p, int n) {
    return vreinterpretq_f32_u32(vshll_n_u16(load16(p, n), 16));
  }
  static Float load(const f16* p, int n) {
    return vcvt_f32_f16(vreinterpret_f16_u16(load16(p, n)));
  }

  static void store(float* p, Float value, int n) {
    if (n == kLanes) return vst1q_f32(p, value);
    float lanes[kLanes];
    vst1q_f32(lanes, value);
    std::memcpy(p, lanes, sizeof(float) * static_cast<std::size_t>(n));
  }
  static void store(bf16* p, Float value, int n) {
    const uint32x4_t bits = vreinterpretq_u32_f32(value);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t biased = vaddq_u32(bits, vdupq_n_u32(0x7fff));
    const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(biased, odd), 16);
    const uint32x4_t is_number = vceqq_f32(value, value);
    store16(p, vmovn_u32(vbslq_u32(is_number, rounded, vdupq_n_u32(0x7fc0))), n);
  }
  static void store(f16* p, Float value, int n) {
    store16(p, vreinterpret_u16_f16(vcvt_f16_f32(value)), n);
  }

  static Mask nonzero(const std::uint8_t* p, int n) {
    std::uint32_t lanes[kLanes] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i] != 0 ? 0xffffffffu : 0u;
    return vld1q_u32(lanes);
  }
  static Float splat(float value) { return vdupq_n_f32(value); }

  // Lanes as unsigned 32-bit integers, modulo 2^32.
  static Bits bits_splat(std::uint32_t value) { return vdupq_n_u32(value); }
  static Bits bits_iota() {
    const std::uint32_t lanes[kLanes] = {0, 1, 2, 3};
    return vld1q_u32(lanes);
  }
  static Bits bits_add(Bits a, Bits b) { return vaddq_u32(a, b); }
  static Bits bits_and(Bits a, Bits b) { return vandq_u32(a, b); }
  static Bits bits_xor(Bits a, Bits b) { return veorq_u32(a, b); }
  template <int kCount>
  static Bits bits_left(Bits a) {
    return vshlq_n_u32(a, kCount);
  }
  template <int kCount>
  static Bits bits_right(Bits a) {
    return vshrq_n_u32(a, kCount);
  }
  static void bits_product(Bits a, Bits b, Bits* high, Bits* low) {
    const uint32x4_t first = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(a), vget_low_u32(b)));
    const uint32x4_t last = vreinterpretq_u32_u64(vmull_high_u32(a, b));
    *high = vuzp2q_u32(first, last);
    *low = vuzp1q_u32(first, last);
  }
  static constexpr bool kHalves = false;
  static Bits bits_of_float(Float a) { return vreinterpretq_u32_f32(a); }
  static Float float_of_bits(Bits a) { return vreinterpretq_f32_u32(a); }
  static Float from_signed(Bits a) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a)); }
  static Float sqrt(Float a) { return vsqrtq_f32(a); }
  // sums[lane] += a.
  static void accumulate(double* sums, Float a) {
    vst1q_f64(sums, vaddq_f64(vld1q_f64(sums), vcvt_f64_f32(vget_low_f32(a))));
    vst1q_f64(sums + 2, vaddq_f64(vld1q_f64(sums + 2), vcvt_high_f64_f32(a)));
  }

  static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  static Float select(Mask mask, Float yes, Float no) { return vbslq_f32(mask, yes, no); }

  static Float from_ints(const std::int32_t* p) { return vcvtq_f32_s32(vld1q_s32(p)); }
  // Pairs of bfloat16: the first of each, and the second.
  static void load_pairs(const bf16* p, Float& first, Float& second) {
    const uint32x4_t pairs = vreinterpretq_u32_u16(vld1q_u16(&p->bits));
    first = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
    second = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
  }
  static Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static Float sub(Float a, Float b) { return vsubq_f32(a, b); }
  static Float mul(Float a, Float b) { return vmulq_f32(a, b); }
  // Lane i plus lane i + 2, then 1 apart: the one order of every instruction set.
  static float sum_lanes(Float a) {
    const float32x2_t v = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(v, 0) + vget_lane_f32(v, 1);
  }
  static Float div(Float a, Float b) { return vdivq_f32(a, b); }
  // A NaN in b is kept.
  static Float max(Float a, Float b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static Float min(Float a, Float b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static Float abs(Float a) { return vabsq_f32(a); }
  static Mask less(Float a, Float b) { return vcltq_f32(a, b); }
  static Float round(Float a) { return vrndnq_f32(a); }  // halves to even
  // 2^n for an integral n of [-126, 127].
  static Float pow2(Float n) {
    const int32x4_t biased = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
    return vreinterpretq_f32_s32(vshlq_n_s32(biased, 23));
  }

 private:
  static uint16x4_t load16(const void* p, int n) {
    std::uint16_t lanes[kLanes] = {};
    std::memcpy(lanes, p, 2 * static_cast<std::size_t>(n));
    return vld1_u16(lanes);
  }
  static void store16(void* p, uint16x4_t value, int n) {
    std::uint16_t lanes[kLanes];
    vst1_u16(lanes, value);
    std::memcpy(p, lanes, 2 * static_cast<std::size_t>(n));
  }
};

}  // namespace
}  // namespace vlakern
