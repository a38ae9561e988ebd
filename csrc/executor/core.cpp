#include "executor/core.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "common/error.h"
#include "executor/fault_point.h"

namespace vlakern::executor {

namespace {

Nanoseconds nanoseconds(double seconds) { return std::llround(seconds * 1e9); }

void check_between(const char* name, double value, double least, double most) {
  if (value >= least && value <= most) return;
  throw InputError(std::string("executor.") + name + " is " + std::to_string(value) +
                   ", expected " + std::to_string(least) + " to " + std::to_string(most));
}

bool all_finite(const double* values, std::size_t count) {
  return std::all_of(values, values + count, [](double one) { return std::isfinite(one); });
}

}  // namespace

void Config::check() const {
  limits.check();
  check_between("dims", limits.dims(), 1, kMostDims);
  check_between("tick_rate", tick_rate, 50.0, 1000.0);
  check_between("policy_rate", policy_rate, 0.1, tick_rate);
  check_between("most_steps", most_steps, 1, kMostSteps);
  check_between("stop_after", stop_after, 0.0, 10.0);
  check_between("fault_after", fault_after, stop_after, 60.0);
  for (int dim : held) check_between("held", dim, 0, limits.dims() - 1);
}

const char* state_name(State state) {
  switch (state) {
    case State::kWaiting:
      return "waiting";
    case State::kRunning:
      return "running";
    case State::kStarved:
      return "starved";
    case State::kStopping:
      return "stopping";
    case State::kHolding:
      return "holding";
    case State::kFault:
      return "fault";
  }
  return "unknown";
}

Core::Core(const Config& config)
    : config_((config.check(), config)),
      limiter_(config.limits, config.tick_rate),
      queue_(config.most_steps, config.limits.dims()),
      held_(static_cast<std::size_t>(config.limits.dims())),
      before_(held_.size()),
      target_(held_.size()),
      tick_step_(nanoseconds(1.0 / config.tick_rate)),
      policy_step_(nanoseconds(1.0 / config.policy_rate)),
      stop_after_(nanoseconds(config.stop_after)),
      fault_after_(nanoseconds(config.fault_after)) {
  for (int dim : config.held) held_[static_cast<std::size_t>(dim)] = true;
  const auto size = static_cast<std::size_t>(config.most_steps) * held_.size();
  incoming_.actions.resize(size);
  active_.actions.resize(size);
  incoming_.dims = active_.dims = limiter_.dims();
}

void Core::start(const double* position) {
  limiter_.start(position);
  counters_.replaced.add(queue_.clear());
  has_chunk_ = finishing_ = false;
  if (state() != State::kFault) enter(State::kWaiting);
}

Verdict Core::submit(const double* actions, int steps, int dims, Nanoseconds observed,
                     Nanoseconds now, std::uint64_t* id) {
  if (dims != limiter_.dims() || steps < 1 || steps > config_.most_steps)
    throw InputError("a chunk of " + std::to_string(steps) + " steps and " + std::to_string(dims) +
                     " dimensions, expected 1 to " + std::to_string(config_.most_steps) +
                     " steps and " + std::to_string(limiter_.dims()) + " dimensions");
  const std::lock_guard<std::mutex> one_at_a_time(submitting_);
  const auto count = static_cast<std::size_t>(steps) * static_cast<std::size_t>(dims);
  Verdict verdict = judge(actions, count, steps, observed, now);
  if (verdict == Verdict::kAccepted) {
    if (queue_.push(actions, steps, next_id_, observed, policy_step_)) {
      newest_observed_.store(observed);
      *id = next_id_++;
    } else {
      verdict = Verdict::kFull;
    }
  }
  verdicts_[static_cast<std::size_t>(verdict)].fetch_add(1, std::memory_order_relaxed);
  return verdict;
}

Verdict Core::judge(const double* actions, std::size_t count, int steps, Nanoseconds observed,
                    Nanoseconds now) {
  if (state() == State::kFault || halt_.load(std::memory_order_acquire)) return Verdict::kFault;
  if (!all_finite(actions, count)) return Verdict::kNotFinite;
  if (observed > now || observed <= newest_observed_.load()) return Verdict::kOutOfOrder;
  // A robot that rests begins a chunk at its first action, however late it comes.
  const bool moving = state() == State::kRunning || state() == State::kStarved;
  if (moving && observed + steps * policy_step_ <= now) return Verdict::kExpired;
  return Verdict::kAccepted;
}

bool Core::tick(Nanoseconds now, Command* command) {
  if (reset_.exchange(false, std::memory_order_acq_rel)) {
    counters_.replaced.add(queue_.clear());
    has_chunk_ = false;
    if (state() != State::kWaiting) enter(State::kStopping);
  }
  if (halt_.load(std::memory_order_acquire)) latch_fault();
  if (state() != State::kFault && !finishing_) take_chunk(now);
  watch(now);
  move(now);
  ++ticks_;
  write(now, command);
  VLAKERN_FAULT_POINT(kCommand, command->position, command->dims);
  if (!limiter_.sound() || !is_sound(*command)) {
    counters_.refused.add();
    latch_fault();
    limiter_.brake_instead();
    write(now, command);
  }
  counters_.ticks.add();
  return limiter_.rests();
}

void Core::write(Nanoseconds now, Command* command) const {
  command->tick = ticks_;
  command->time = now;
  command->chunk = has_chunk_ ? active_.id : 0;
  command->state = state();
  command->dims = limiter_.dims();
  for (int i = 0; i < limiter_.dims(); ++i) {
    command->position[i] = limiter_.position(i);
    command->velocity[i] = limiter_.velocity(i);
  }
}

bool Core::is_sound(const Command& command) const {
  for (int i = 0; i < limiter_.dims(); ++i)
    if (command.position[i] != limiter_.position(i) || command.velocity[i] != limiter_.velocity(i))
      return false;
  return true;
}

void Core::take_chunk(Nanoseconds now) {
  std::uint64_t overtaken = 0;
  if (!queue_.pop_newest(&incoming_, &overtaken)) return;
  counters_.replaced.add(overtaken);
  const int count = incoming_.steps * incoming_.dims;
  if (!all_finite(incoming_.actions.data(), static_cast<std::size_t>(count))) {
    counters_.refused.add();  // what was finite when it came no longer is: the former one goes on
    return;
  }
  const bool moving = state() == State::kRunning || state() == State::kStarved;
  // From rest nothing is skipped: the time that inference took is not the robot's to catch up.
  if (!moving) incoming_.begin = now;
  if (incoming_.end() <= now) {
    counters_.expired.add();
    return;
  }
  std::swap(active_, incoming_);
  has_chunk_ = true;
  counters_.chunks.add();
  enter(State::kRunning);
}

void Core::watch(Nanoseconds now) {
  const State at = state();
  if (at == State::kWaiting || at == State::kFault || !has_chunk_) return;
  if (now < active_.end()) return;
  counters_.starved.add();
  if (at == State::kRunning) enter(State::kStarved);
  const Nanoseconds without = now - active_.end();
  if (without >= stop_after_ && state() == State::kStarved) {
    counters_.stops.add();
    enter(State::kStopping);
  }
  if (without >= fault_after_) latch_fault();
}

void Core::move(Nanoseconds now) {
  const State at = state();
  if (at == State::kRunning || at == State::kStarved) {
    active_.at(now - tick_step_, held_, before_.data());
    active_.at(now, held_, target_.data());
    VLAKERN_FAULT_POINT(kInterpolated, before_.data(), limiter_.dims());
    VLAKERN_FAULT_POINT(kInterpolated, target_.data(), limiter_.dims());
    if (!all_finite(before_.data(), before_.size()) ||
        !all_finite(target_.data(), target_.size())) {
      counters_.refused.add();
      latch_fault();
      limiter_.stop();
      return;
    }
    if (limiter_.advance(before_.data(), target_.data())) counters_.limited.add();
    return;
  }
  if (limiter_.stop() && at == State::kStopping)
    enter(has_chunk_ ? State::kHolding : State::kWaiting);
}

void Core::sink_failed() {
  counters_.sink_failures.add();
  halt();
}

void Core::finish() {
  finishing_ = true;
  counters_.replaced.add(queue_.clear());
  has_chunk_ = false;
  if (state() == State::kRunning || state() == State::kStarved) enter(State::kStopping);
}

void Core::latch_fault() {
  if (state() == State::kFault) return;
  counters_.faults.add();
  enter(State::kFault);
}

void Core::enter(State next) { state_.store(next, std::memory_order_release); }

}  // namespace vlakern::executor
