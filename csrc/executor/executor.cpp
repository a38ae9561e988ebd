#include "executor/executor.h"

#include "common/error.h"

namespace vlakern::executor {

Executor::Executor(const Config& config, const Realtime& realtime, const Sink& sink)
    : core_(config), realtime_(realtime), sink_(sink), trace_(std::make_unique<Trace>()) {
  if (sink.send == nullptr) throw InputError("an executor needs a sink for its commands");
  if (realtime.priority < 0 || realtime.priority > 99)
    throw InputError("executor.priority is " + std::to_string(realtime.priority) +
                     ", expected 0 (none) or 1 to 99");
}

Executor::~Executor() { stop(); }

void Executor::start(const double* position) {
  if (runs()) throw InputError("the executor runs already; stop it first");
  core_.start(position);
  ending_.store(false);
  ready_.store(false);
  thread_ = std::thread(&Executor::run, this);
  while (!ready_.load(std::memory_order_acquire)) std::this_thread::yield();
}

void Executor::stop() {
  if (!runs()) return;
  ending_.store(true);
  thread_.join();
}

void Executor::run() {
  statements_ = apply(realtime_);
  ready_.store(true, std::memory_order_release);
  const auto period = static_cast<Nanoseconds>(1e9 / core_.config().tick_rate);
  Nanoseconds due = monotonic_now() + period;
  bool resting = false;
  while (!(ending_.load(std::memory_order_relaxed) && resting)) {
    sleep_until(due);
    if (const Nanoseconds length = stall_.exchange(0); length > 0)
      sleep_until(monotonic_now() + length);
    const Nanoseconds late = monotonic_now() - due;
    // Whole periods that have passed are skipped, never made up for in a burst.
    if (const Nanoseconds missed = late / period; missed > 0) {
      core_.counters().missed.add(static_cast<std::uint64_t>(missed));
      due += missed * period;
    }
    core_.counters().lateness.add(late);
    if (ending_.load(std::memory_order_relaxed)) core_.finish();
    resting = tick(due, late);
    due += period;
  }
}

bool Executor::tick(Nanoseconds due, Nanoseconds late) {
  Command command;
  const bool resting = core_.tick(due, &command);
  trace_->add({command.tick, command.chunk, due, late, command.state});
  if (sink_.send(sink_.context, command) != 0) core_.sink_failed();
  return resting;
}

}  // namespace vlakern::executor
