// What the control thread does in a tick, without the thread: a function of time, to be tested as
// one.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <limits>
#include <mutex>
#include <vector>

#include "chunk_buffer.h"
#include "counters.h"
#include "limiter.h"

namespace vlakern::executor {

constexpr int kMostDims = 64;
constexpr int kMostSteps = 4096;

struct Config {
  double tick_rate = 200.0;   // [Hz], 50 to 1,000
  double policy_rate = 20.0;  // actions of a chunk [Hz]
  int most_steps = 64;        // of a chunk
  double stop_after = 0.1;    // [s] without an unexpired action until a stop begins
  double fault_after = 0.5;   // [s] until a fault is latched
  std::vector<int> held;      // dimensions that are not interpolated, such as switches
  Limits limits;

  // Raises InputError naming the field.
  void check() const;
};

enum class State : std::uint8_t {
  kWaiting,   // for the first chunk, or for one after a stop or reset; the robot rests
  kRunning,   // a chunk is executed
  kStarved,   // its last action is over and held, the watchdog is counting
  kStopping,  // braking
  kHolding,   // stopped; a new chunk goes on
  kFault,     // stopped; only a reset goes on
};
const char* state_name(State state);

// What a sink gets, once per tick.
struct Command {
  std::uint64_t tick;
  Nanoseconds time;
  std::uint64_t chunk;  // id of the chunk, 0 before the first
  State state;
  int dims;
  double position[kMostDims];
  double velocity[kMostDims];  // of the commands [unit/s]
};

class Core {
 public:
  explicit Core(const Config& config);

  // Before the first tick: the robot rests at `position`, and chunks that were handed in before are
  // gone. Raises InputError outside the limits.
  void start(const double* position);
  // From any thread but the control thread. `observed` is when the chunk's observation was taken;
  // `now` is the clock. Raises InputError for wrong sizes.
  Verdict submit(const double* actions, int steps, int dims, Nanoseconds observed, Nanoseconds now,
                 std::uint64_t* id);
  // From any thread: clears a fault at the next tick; chunks that were handed in before are gone.
  void reset() {
    // Here and not in the tick, which would take back a halt() that came after this.
    halt_.store(false, std::memory_order_release);
    reset_.store(true, std::memory_order_release);
  }
  // Begins a stop at the next tick, and latches a fault.
  void halt() { halt_.store(true, std::memory_order_release); }

  // The control thread alone. A tick returns whether the robot rests.
  bool tick(Nanoseconds now, Command* command);
  void sink_failed();
  // No chunk any more until start(): brake, and rest.
  void finish();

  const Config& config() const { return config_; }
  const Counters& counters() const { return counters_; }
  Counters& counters() { return counters_; }
  State state() const { return state_.load(std::memory_order_acquire); }
  // Chunks handed in, by verdict.
  std::uint64_t verdicts(Verdict verdict) const {
    return verdicts_[static_cast<std::size_t>(verdict)].load(std::memory_order_relaxed);
  }

 private:
  Verdict judge(const double* actions, std::size_t count, int steps, Nanoseconds observed,
                Nanoseconds now);
  void take_chunk(Nanoseconds now);
  void watch(Nanoseconds now);
  void move(Nanoseconds now);
  void enter(State next);
  void latch_fault();
  void write(Nanoseconds now, Command* command) const;
  bool is_sound(const Command& command) const;

  Config config_;
  Limiter limiter_;
  ChunkQueue queue_;
  Counters counters_;
  std::vector<bool> held_;
  Chunk incoming_, active_;
  bool has_chunk_ = false, finishing_ = false;
  std::vector<double> before_, target_;
  Nanoseconds tick_step_, policy_step_, stop_after_, fault_after_;
  std::uint64_t ticks_ = 0;
  std::atomic<State> state_{State::kWaiting};
  std::atomic<bool> reset_{false}, halt_{false};
  // Of the threads that hand chunks in.
  std::mutex submitting_;
  std::uint64_t next_id_ = 1;
  std::atomic<Nanoseconds> newest_observed_{std::numeric_limits<Nanoseconds>::min()};
  std::array<std::atomic<std::uint64_t>, 6> verdicts_{};
};

}  // namespace vlakern::executor
