// The real-time executor of action chunks: a thread that sends one checked command per tick.
//
// Nothing here needs Python, and nothing is allocated after start(). It is not a safety-rated
// function: the robot's own emergency stop stays in charge.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core.h"
#include "realtime.h"
#include "trace.h"

namespace vlakern::executor {

// Gets every command on the control thread; another answer than 0, or an exception, latches a
// fault. It must not wait: while it does there are no ticks and no watchdog, and stop() and the
// destructor wait for it without limit, since a thread inside foreign code cannot be ended safely.
// A sink that talks to a device uses that device's own time limit.
struct Sink {
  int (*send)(void* context, const Command& command);
  void* context;
};

class Executor {
 public:
  Executor(const Config& config, const Realtime& realtime, const Sink& sink);
  // As stop().
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // Starts the thread; the robot rests at `position` [dims]. Raises InputError outside the limits
  // or where it runs already.
  void start(const double* position);
  // Brakes, then ends the thread; returns after the sink's last answer. Any threads may start and
  // stop; the sink may not, and gets an InputError.
  void stop();
  bool runs() const { return runs_.load(std::memory_order_acquire); }

  // As Core's; `observed` on the clock of monotonic_now().
  Verdict submit(const double* actions, int steps, int dims, Nanoseconds observed,
                 std::uint64_t* id) {
    return core_.submit(actions, steps, dims, observed, monotonic_now(), id);
  }
  void reset() { core_.reset(); }
  void halt() { core_.halt(); }

  const Core& core() const { return core_; }
  const Trace& trace() const { return *trace_; }
  // What the operating system granted, after start().
  const std::vector<std::string>& statements() const { return statements_; }
  // Stops the thread for a while, for tests of what follows.
  void stall(Nanoseconds length) { stall_.store(length); }

 private:
  void run();
  bool tick(Nanoseconds due, Nanoseconds late);
  bool sent(const Command& command);
  void refuse_the_sink() const;

  Core core_;
  Realtime realtime_;
  Sink sink_;
  std::unique_ptr<Trace> trace_;
  std::vector<std::string> statements_;
  std::mutex starting_or_stopping_;
  std::thread thread_;
  std::atomic<std::thread::id> control_{};
  std::atomic<bool> runs_{false}, ending_{false}, ready_{false};
  std::atomic<Nanoseconds> stall_{0};
};

}  // namespace vlakern::executor
