// The last ticks, written by the control thread and read by any other, without a lock.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

#include "core.h"

namespace vlakern::executor {

struct TraceEntry {
  std::uint64_t tick, chunk;
  Nanoseconds time, late;
  State state;
};

class Trace {
 public:
  void add(const TraceEntry& entry) {
    Slot& slot = slots_[entry.tick % kSlots];
    const std::uint64_t version = slot.version.load(std::memory_order_relaxed);
    slot.version.store(version + 1, std::memory_order_relaxed);  // odd: being written
    const std::uint64_t words[] = {entry.tick, entry.chunk, static_cast<std::uint64_t>(entry.time),
                                   static_cast<std::uint64_t>(entry.late),
                                   static_cast<std::uint64_t>(entry.state)};
    // Whoever reads one of these words sees the odd version, too.
    for (std::size_t i = 0; i < kWords; ++i)
      slot.words[i].store(words[i], std::memory_order_release);
    slot.version.store(version + 2, std::memory_order_release);
    newest_.store(entry.tick, std::memory_order_release);
  }
  // The last `most` ticks, oldest first; those that were overwritten meanwhile are left out.
  std::vector<TraceEntry> last(std::uint64_t most) const {
    std::vector<TraceEntry> found;
    const std::uint64_t newest = newest_.load(std::memory_order_acquire);
    const std::uint64_t count = most < kSlots ? most : kSlots;
    for (std::uint64_t tick = newest > count ? newest - count + 1 : 1; tick <= newest; ++tick) {
      TraceEntry entry{};
      if (read(slots_[tick % kSlots], &entry) && entry.tick == tick) found.push_back(entry);
    }
    return found;
  }

 private:
  static constexpr std::uint64_t kSlots = 4096;
  static constexpr std::size_t kWords = 5;
  struct Slot {
    std::atomic<std::uint64_t> version{0};
    std::array<std::atomic<std::uint64_t>, kWords> words{};
  };

  static bool read(const Slot& slot, TraceEntry* entry) {
    const std::uint64_t before = slot.version.load(std::memory_order_acquire);
    std::array<std::uint64_t, kWords> words{};
    for (std::size_t i = 0; i < kWords; ++i)
      words[i] = slot.words[i].load(std::memory_order_acquire);
    if (before % 2 != 0 || slot.version.load(std::memory_order_relaxed) != before) return false;
    *entry = {words[0], words[1], static_cast<Nanoseconds>(words[2]),
              static_cast<Nanoseconds>(words[3]), static_cast<State>(words[4])};
    return true;
  }

  std::array<Slot, kSlots> slots_{};
  std::atomic<std::uint64_t> newest_{0};
};

}  // namespace vlakern::executor
