// Chunks on their way from inference to the control thread, and the one that is being executed.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

namespace vlakern::executor {

// Nanoseconds of the monotonic clock.
using Nanoseconds = std::int64_t;

// What became of a chunk that was handed in.
enum class Verdict : std::uint8_t {
  kAccepted,
  kNotFinite,   // a NaN or an infinity somewhere: the former chunk goes on
  kOutOfOrder,  // its observation is not newer than that of the last accepted chunk
  kExpired,     // its last action is already over
  kFault,       // a fault is latched until reset
  kFull,        // the control thread takes nothing
};
const char* verdict_name(Verdict verdict);

// Actions [steps, dims]; action k stands at begin + k * step, the last one until begin + steps *
// step.
struct Chunk {
  std::vector<double> actions;
  int steps = 0, dims = 0;
  std::uint64_t id = 0;
  Nanoseconds observed = 0;
  Nanoseconds begin = 0, step = 1;

  Nanoseconds end() const { return begin + steps * step; }
  // What is wanted at `now`, interpolated but where `held`; before and after it, its ends.
  void at(Nanoseconds now, const std::vector<bool>& held, double* wanted) const;
};

// A bounded queue between any number of writers, one after the other, and the control thread, which
// never waits.
class ChunkQueue {
 public:
  ChunkQueue(int most_steps, int dims);

  // Copies actions [steps, dims]; false where the queue is full.
  bool push(const double* actions, int steps, std::uint64_t id, Nanoseconds observed,
            Nanoseconds step);
  // Moves the newest chunk into `into`, whose memory is large enough, and drops those before it;
  // false where there is none. `dropped` counts them.
  bool pop_newest(Chunk* into, std::uint64_t* dropped);
  // Drops what there is, on the control thread; returns how many.
  std::uint64_t clear();

 private:
  static constexpr std::uint64_t kSlots = 4;

  std::mutex writing_;
  std::vector<Chunk> slots_;
  std::atomic<std::uint64_t> written_{0}, read_{0};
};

}  // namespace vlakern::executor
