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

void Executor::refuse_the_sink() const {
  if (std::this_thread::get_id() != control_.load()) return;
  throw InputError(
      "the executor's sink starts or stops it, and would wait for itself; answer with another "
      "number"
      " than 0 to stop the robot");
}

void Executor::start(const double* position) {
  refuse_the_sink();
  const std::lock_guard<std::mutex> one_at_a_time(starting_or_stopping_);
  if (runs()) throw InputError("the executor runs already; stop it first");
  core_.start(position);
  ending_.store(false);
  ready_.store(false);
  thread_ = std::thread(&Executor::run, this);
  while (!ready_.load(std::memory_order_acquire)) std::this_thread::yield();
  runs_.store(true, std::memory_order_release);
}

void Executor::stop() {
  refuse_the_sink();
  const std::lock_guard<std::mutex> one_at_a_time(starting_or_stopping_);
  if (!runs()) return;
  ending_.store(true);
  thread_.join();
  control_.store({});
  runs_.store(false, std::memory_order_release);
}

void Executor::run() {
  statements_ = apply(realtime_);
  control_.store(std::this_thread::get_id());
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
  if (!sent(command)) core_.sink_failed();
  return resting;
}

bool Executor::sent(const Command& command) {
  try {
    return sink_.send(sink_.context, command) == 0;
  } catch (...) {  // it would end the process, and the robot would get no command at all
    return false;
  }
}

}  // namespace vlakern::executor
