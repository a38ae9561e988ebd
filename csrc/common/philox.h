// Normal numbers from a counter: Philox-4x32-10 (Salmon et al., SC 2011) and Box-Muller, the same
// bits on every instruction set.
//
// A draw is addressed by (seed, row, stream, block): the key is the seed's low and high half, the
// counter is (block, stream, row's low half, row's high half). The words w0 w1 w2 w3 give
//
//   u = ((w0 >> 8) + 1) / 2^24  of (0, 1]     t = (w1 >> 8) / 2^24  of [0, 1)
//   z0 = sqrt(-2 ln u) cos(2 pi t)            z1 = sqrt(-2 ln u) sin(2 pi t)
//
// and the same of w2 and w3. The largest normal is sqrt(48 ln 2) = 5.77.
#pragma once

#include <cstdint>

#include "common/vec_math.h"

namespace vlakern {

struct PhiloxAddress {
  std::uint64_t seed;
  std::uint64_t row;
  std::uint32_t stream;
};

namespace {

constexpr std::uint32_t kPhiloxMultiplier[] = {0xD2511F53u, 0xCD9E8D57u};
constexpr std::uint32_t kPhiloxWeyl[] = {0x9E3779B9u, 0xBB67AE85u};
constexpr int kPhiloxRounds = 10;

// A product's upper and lower 32 bits, of a number in every lane.
template <class Vec>
struct PhiloxLanes {
  static void product(typename Vec::Bits a, typename Vec::Bits b, typename Vec::Bits* high,
                      typename Vec::Bits* low) {
    Vec::bits_product(a, b, high, low);
  }
};

// The same of a number in every other lane: what stands beside it is never used.
template <class Vec>
struct PhiloxHalves {
  static void product(typename Vec::Bits a, typename Vec::Bits b, typename Vec::Bits* high,
                      typename Vec::Bits* low) {
    *low = Vec::bits_wide_product(a, b);
    *high = Vec::bits_odd(*low);
  }
};

template <class Vec, class Lanes, int kCount>
inline void philox_turns(typename Vec::Bits (&counters)[kCount][4], std::uint32_t key0,
                         std::uint32_t key1) {
  const auto multiplier0 = Vec::bits_splat(kPhiloxMultiplier[0]);
  const auto multiplier1 = Vec::bits_splat(kPhiloxMultiplier[1]);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    for (auto& c : counters) {
      typename Vec::Bits high0, low0, high1, low1;
      Lanes::product(c[0], multiplier0, &high0, &low0);
      Lanes::product(c[2], multiplier1, &high1, &low1);
      c[0] = Vec::bits_xor(Vec::bits_xor(high1, c[1]), Vec::bits_splat(key0));
      c[2] = Vec::bits_xor(Vec::bits_xor(high0, c[3]), Vec::bits_splat(key1));
      c[1] = low1;
      c[3] = low0;
    }
    key0 += kPhiloxWeyl[0];
    key1 += kPhiloxWeyl[1];
  }
}

// Counters in, random words out, one counter a lane; several at a time, since a round waits for the
// one before. Even and odd lanes go apart where a product needs twice the room.
template <class Vec, int kCount>
inline void philox_rounds(typename Vec::Bits (&counters)[kCount][4], std::uint32_t key0,
                          std::uint32_t key1) {
  if constexpr (Vec::kHalves) {
    typename Vec::Bits halves[2 * kCount][4];
    for (int i = 0; i < 4 * kCount; ++i) {
      halves[i / 4][i % 4] = counters[i / 4][i % 4];
      halves[kCount + i / 4][i % 4] = Vec::bits_odd(counters[i / 4][i % 4]);
    }
    philox_turns<Vec, PhiloxHalves<Vec>>(halves, key0, key1);
    for (int i = 0; i < 4 * kCount; ++i) {
      counters[i / 4][i % 4] = Vec::bits_join(halves[i / 4][i % 4], halves[kCount + i / 4][i % 4]);
    }
  } else {
    philox_turns<Vec, PhiloxLanes<Vec>>(counters, key0, key1);
  }
}

template <class Vec>
inline void philox_rounds(typename Vec::Bits (&c)[4], std::uint32_t key0, std::uint32_t key1) {
  typename Vec::Bits counters[1][4] = {{c[0], c[1], c[2], c[3]}};
  philox_rounds<Vec>(counters, key0, key1);
  for (int i = 0; i < 4; ++i) c[i] = counters[0][i];
}

// The words of blocks `first`, `first` + 1, ... in the lanes, and `step` blocks on in the next.
template <class Vec, int kCount>
inline void philox_words(const PhiloxAddress& at, std::uint32_t first, std::uint32_t step,
                         typename Vec::Bits (&words)[kCount][4]) {
  for (int k = 0; k < kCount; ++k) {
    const auto begin = first + static_cast<std::uint32_t>(k) * step;
    words[k][0] = Vec::bits_add(Vec::bits_splat(begin), Vec::bits_iota());
    words[k][1] = Vec::bits_splat(at.stream);
    words[k][2] = Vec::bits_splat(static_cast<std::uint32_t>(at.row));
    words[k][3] = Vec::bits_splat(static_cast<std::uint32_t>(at.row >> 32));
  }
  philox_rounds<Vec>(words, static_cast<std::uint32_t>(at.seed),
                     static_cast<std::uint32_t>(at.seed >> 32));
}

template <class Vec>
inline void box_muller(typename Vec::Bits radius, typename Vec::Bits turn, typename Vec::Float* z0,
                       typename Vec::Float* z1) {
  // sin(pi f) / f and cos(pi f) in f^2 for |f| <= 1/2, minimax, 1.4e-8 and 3e-10.
  static constexpr float kSin[] = {3.1415927f, -5.1677103f, 2.5500777f, -0.5982922f, 0.0776594f};
  static constexpr float kCos[] = {1.0f,        -4.934802f,  4.058709f,
                                   -1.3352121f, 0.23493756f, -0.024396716f};
  const auto count = Vec::bits_add(Vec::template bits_right<8>(radius), Vec::bits_splat(1));
  const auto u = Vec::mul(Vec::from_signed(count), Vec::splat(0x1p-24f));
  const auto length = Vec::sqrt(Vec::mul(Vec::splat(-2.0f), vec_log<Vec>(u)));
  // The angle is pi (f + half) with the nearest half turn, whose sign the length takes.
  const auto angle = Vec::template bits_right<8>(turn);
  const auto half = Vec::template bits_right<23>(Vec::bits_add(angle, Vec::bits_splat(1u << 22)));
  const auto f =
      Vec::sub(Vec::mul(Vec::from_signed(angle), Vec::splat(0x1p-23f)), Vec::from_signed(half));
  const auto sign = Vec::template bits_left<31>(half);
  const auto signed_length = Vec::float_of_bits(Vec::bits_xor(Vec::bits_of_float(length), sign));
  const auto square = Vec::mul(f, f);
  *z0 = Vec::mul(signed_length, polynomial<Vec>(kCos, square));
  *z1 = Vec::mul(signed_length, Vec::mul(f, polynomial<Vec>(kSin, square)));
}

// Four normals of each of the blocks of philox_words, or two and two zeros.
template <class Vec, int kCount>
inline void philox_normals(const PhiloxAddress& at, std::uint32_t first, std::uint32_t step,
                           bool half, typename Vec::Float (&z)[kCount][4]) {
  typename Vec::Bits words[kCount][4];
  philox_words<Vec>(at, first, step, words);
  for (int k = 0; k < kCount; ++k) {
    box_muller<Vec>(words[k][0], words[k][1], &z[k][0], &z[k][1]);
    z[k][2] = z[k][3] = Vec::splat(0.0f);
    if (!half) box_muller<Vec>(words[k][2], words[k][3], &z[k][2], &z[k][3]);
  }
}

}  // namespace
}  // namespace vlakern
