// fp32 memory that a thread keeps between calls, on cache lines.
#pragma once

#include <cstdint>
#include <vector>

namespace vlakern {

// Rows of `width` floats, each beginning a cache line: a vector load that crosses one costs twice.
class Scratch {
 public:
  // `rows` rows of `width`; what was there is lost.
  void reserve(std::int64_t rows, std::int64_t width) {
    lines_per_row_ = (width + kFloats - 1) / kFloats;
    const auto needed = static_cast<std::size_t>(rows * lines_per_row_);
    if (memory_.size() < needed) memory_.resize(needed);
  }
  float* row(std::int64_t i) { return memory_[static_cast<std::size_t>(i * lines_per_row_)].value; }

 private:
  static constexpr std::int64_t kFloats = 16;
  struct alignas(64) Line {
    float value[kFloats];
  };
  std::vector<Line> memory_;
  std::int64_t lines_per_row_ = 0;
};

}  // namespace vlakern
