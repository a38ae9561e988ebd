#include "common/checksum.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "common/thread_pool.h"

namespace vlakern {
namespace {

constexpr std::uint64_t kBlock = 1 << 20;
constexpr int kLanes = 8;

// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every bit depends on every other.
std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

struct Sums {
  std::uint64_t plain[kLanes] = {};
  std::uint64_t weighted[kLanes] = {};

  void add(const char* line) {
    std::uint64_t words[kLanes];
    std::memcpy(words, line, sizeof words);
    for (int i = 0; i < kLanes; ++i) plain[i] += words[i];
    for (int i = 0; i < kLanes; ++i) weighted[i] += plain[i];
  }
};

std::uint64_t block_sum(const char* data, std::uint64_t bytes, std::uint64_t number) {
  constexpr std::uint64_t kLine = kLanes * sizeof(std::uint64_t);
  Sums sums;
  std::uint64_t at = 0;
  for (; at + kLine <= bytes; at += kLine) sums.add(data + at);
  if (at < bytes) {
    char rest[kLine] = {};
    std::memcpy(rest, data + at, bytes - at);
    sums.add(rest);
  }
  std::uint64_t sum = mix(number ^ (bytes << 40));
  for (int i = 0; i < kLanes; ++i) sum = mix(mix(sum ^ sums.plain[i]) ^ sums.weighted[i]);
  return sum;
}

}  // namespace

std::uint64_t checksum(std::uintptr_t address, std::uint64_t bytes, int threads) {
  const char* data = reinterpret_cast<const char*>(address);
  const auto blocks = static_cast<std::int64_t>((bytes + kBlock - 1) / kBlock);
  std::atomic<std::uint64_t> total{0};
  Phase phase(blocks);
  parallel_workers(std::max(1, threads), [&](int) {
    phase.run([&](std::int64_t block) {
      const std::uint64_t first = static_cast<std::uint64_t>(block) * kBlock;
      total += block_sum(data + first, std::min(kBlock, bytes - first),
                         static_cast<std::uint64_t>(block));
    });
  });
  return total;
}

}  // namespace vlakern
