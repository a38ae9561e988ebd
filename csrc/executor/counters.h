// What the control thread counts, readable from any thread while it runs.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "chunk_buffer.h"

namespace vlakern::executor {

// How late ticks were, in buckets that widen: 1 us up to 1 ms, 10 us up to 10 ms, 1 ms up to 1 s.
// One thread adds; any thread reads.
class Lateness {
 public:
  void add(Nanoseconds late) {
    const std::int64_t us = late > 0 ? late / 1000 : 0;
    counts_[bucket(us)].fetch_add(1, std::memory_order_relaxed);
    if (late > most_.load(std::memory_order_relaxed)) most_.store(late, std::memory_order_relaxed);
  }
  std::uint64_t count() const {
    std::uint64_t total = 0;
    for (const auto& one : counts_) total += one.load(std::memory_order_relaxed);
    return total;
  }
  // The upper end of the bucket that `share` of all ticks do not pass [s]; 0 without ticks.
  double quantile(double share) const {
    const double wanted = share * static_cast<double>(count());
    double so_far = 0.0;
    for (std::size_t i = 0; i < kBuckets; ++i) {
      so_far += static_cast<double>(counts_[i].load(std::memory_order_relaxed));
      if (so_far > 0.0 && so_far >= wanted) return upper_end(i);
    }
    return most();
  }
  // [s]
  double most() const { return static_cast<double>(most_.load(std::memory_order_relaxed)) * 1e-9; }

 private:
  static constexpr std::size_t kBuckets = 1000 + 900 + 990 + 1;
  static std::size_t bucket(std::int64_t us) {
    if (us < 1000) return static_cast<std::size_t>(us);
    if (us < 10000) return static_cast<std::size_t>(1000 + (us - 1000) / 10);
    if (us < 1000000) return static_cast<std::size_t>(1900 + (us - 10000) / 1000);
    return kBuckets - 1;
  }
  double upper_end(std::size_t i) const {
    if (i < 1000) return static_cast<double>(i + 1) * 1e-6;
    if (i < 1900) return static_cast<double>(1000 + (i - 999) * 10) * 1e-6;
    if (i < kBuckets - 1) return static_cast<double>(10000 + (i - 1899) * 1000) * 1e-6;
    return most();
  }

  std::array<std::atomic<std::uint64_t>, kBuckets> counts_{};
  std::atomic<Nanoseconds> most_{0};
};

// A number that one thread counts up and any thread reads.
class Counter {
 public:
  void add(std::uint64_t n = 1) {
    value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  std::uint64_t get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

// Of the control thread.
struct Counters {
  Counter ticks;     // commands that were sent
  Counter missed;    // ticks that were skipped because the thread was late
  Counter limited;   // ticks in which a limit kept the command from its target
  Counter chunks;    // chunks that were begun
  Counter replaced;  // accepted chunks that a newer one, a reset or the end overtook unseen
  Counter expired;   // accepted chunks that were over when a tick saw them
  Counter starved;   // ticks without an unexpired action
  Counter stops;     // stops that the watchdog began
  Counter faults;    // faults that were latched
  Counter refused;   // commands that the last look found unsound, and that were not sent
  Counter sink_failures;
  Lateness lateness;
};

}  // namespace vlakern::executor
