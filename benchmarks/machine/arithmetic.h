// Index and time arithmetic of constants.cu, apart so that a host compiler can test it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#ifdef __CUDACC__
#define MACHINE_HD __host__ __device__
#else
#define MACHINE_HD
#endif

namespace machine {

constexpr int kThreads = 256;       // of a block
constexpr std::int64_t kWord = 16;  // bytes of one load

// The 16-byte word that a thread reads with load `load` of the `unroll` that it has in flight, in
// its block's turn `turn`; the loads of a warp are adjacent.
MACHINE_HD constexpr std::int64_t word_of(std::int64_t turn, std::int64_t blocks,
                                          std::int64_t block, int unroll, int load, int thread) {
  return ((turn * blocks + block) * unroll + load) * kThreads + thread;
}

// Turns that blocks need for so many words.
MACHINE_HD constexpr std::int64_t turns_for(std::int64_t words, std::int64_t blocks, int unroll) {
  const std::int64_t each = blocks * unroll * kThreads;
  return (words + each - 1) / each;
}

// Blocks for a read: one for every turn of a block, at most `most` in all, at least one.
inline std::int64_t blocks_for(std::int64_t bytes, int unroll, std::int64_t most) {
  const std::int64_t tile = kThreads * unroll * kWord;
  return std::max<std::int64_t>(1, std::min((bytes + tile - 1) / tile, most));
}

// First byte of window `i` of `count` in a buffer, as far apart as they can be, on 256 bytes.
// Windows overlap only where count * bytes exceeds the buffer.
inline std::int64_t window_begin(std::int64_t i, std::int64_t count, std::int64_t bytes,
                                 std::int64_t buffer) {
  if (count <= 1) return 0;
  const std::int64_t begin =
      static_cast<std::int64_t>(static_cast<double>(buffer - bytes) * static_cast<double>(i) /
                                static_cast<double>(count - 1));
  return begin / 256 * 256;
}

inline double median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : 0.5 * (values[half - 1] + values[half]);
}

// What one more of something costs, from the times of few and of many.
inline double slope(double few, double seconds_few, double many, double seconds_many) {
  return (seconds_many - seconds_few) / (many - few);
}

struct Line {
  double fixed;  // time at zero bytes [s]
  double rate;   // bytes a second beyond that; 0 where time does not grow
};

// seconds = fixed + bytes / rate by least squares on relative errors, so that short times count.
inline Line fit(const std::vector<double>& bytes, const std::vector<double>& seconds) {
  double w = 0, wx = 0, wy = 0, wxx = 0, wxy = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const double weight = 1.0 / (seconds[i] * seconds[i]);
    w += weight;
    wx += weight * bytes[i];
    wy += weight * seconds[i];
    wxx += weight * bytes[i] * bytes[i];
    wxy += weight * bytes[i] * seconds[i];
  }
  const double determinant = w * wxx - wx * wx;
  if (determinant <= 0) return Line{w > 0 ? wy / w : 0.0, 0.0};
  const double per_byte = (w * wxy - wx * wy) / determinant;
  return Line{(wy - per_byte * wx) / w, per_byte > 0 ? 1.0 / per_byte : 0.0};
}

}  // namespace machine
