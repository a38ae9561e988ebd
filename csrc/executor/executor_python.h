// The Python face of the executor: numbers as lists, commands to a thread of Python's own.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/tensor.h"
#include "executor/command_queue.h"
#include "executor/executor.h"
#include "executor/shared_command.h"

namespace vlakern::python {

namespace ex = vlakern::executor;

// tick, time, chunk, state, position, velocity
using CommandTuple = std::tuple<std::uint64_t, std::int64_t, std::uint64_t, std::string,
                                std::vector<double>, std::vector<double>>;
using TraceTuple =
    std::tuple<std::uint64_t, std::uint64_t, std::int64_t, std::int64_t, std::string>;

inline CommandTuple command_tuple(const ex::Command& c) {
  return {c.tick,
          c.time,
          c.chunk,
          ex::state_name(c.state),
          {c.position, c.position + c.dims},
          {c.velocity, c.velocity + c.dims}};
}

// position_min, position_max, velocity, acceleration, jerk
using ExecutorLimits = std::vector<std::vector<double>>;
using ExecutorNumbers = std::map<std::string, double>;

inline ex::Config executor_config(const ExecutorLimits& limits, const ExecutorNumbers& numbers,
                                  const std::vector<int>& held) {
  ex::Config config;
  config.limits = {limits.at(0), limits.at(1), limits.at(2), limits.at(3), limits.at(4)};
  config.tick_rate = numbers.at("tick_rate");
  config.policy_rate = numbers.at("policy_rate");
  const double most_steps = numbers.at("most_steps");
  if (!(most_steps >= 1.0 && most_steps <= ex::kMostSteps))
    throw InputError("executor.most_steps is " + std::to_string(most_steps) + ", expected 1 to " +
                     std::to_string(ex::kMostSteps));
  config.most_steps = static_cast<int>(most_steps);
  config.stop_after = numbers.at("stop_after");
  config.fault_after = numbers.at("fault_after");
  config.held = held;
  return config;
}

inline void check_position(const std::vector<double>& position, const ex::Core& core) {
  const auto dims = static_cast<std::size_t>(core.config().limits.dims());
  if (position.size() == dims) return;
  throw InputError("the position has " + std::to_string(position.size()) + " numbers, expected " +
                   std::to_string(dims));
}

// The control thread's work without the thread, at times that the caller makes up.
class ExecutorCore {
 public:
  ExecutorCore(const ExecutorLimits& limits, const ExecutorNumbers& numbers,
               const std::vector<int>& held, const std::vector<double>& position)
      : core_(executor_config(limits, numbers, held)) {
    check_position(position, core_);
    core_.start(position.data());
  }
  std::string submit(std::uintptr_t actions, int steps, int dims, std::int64_t observed,
                     std::int64_t now) {
    std::uint64_t id = 0;
    const auto* numbers = reinterpret_cast<const double*>(actions);
    return ex::verdict_name(core_.submit(numbers, steps, dims, observed, now, &id));
  }
  void reset() { core_.reset(); }
  void halt() { core_.halt(); }
  CommandTuple tick(std::int64_t now) {
    ex::Command command;
    core_.tick(now, &command);
    return command_tuple(command);
  }

 private:
  ex::Core core_;
};

class Executor {
 public:
  using Limits = ExecutorLimits;
  // priority of SCHED_FIFO, core, whether memory is locked
  using Realtime = std::tuple<int, int, bool>;

  Executor(const Limits& limits, const ExecutorNumbers& numbers, const std::vector<int>& held,
           const Realtime& realtime, const std::string& shared_name) {
    const ex::Config config = executor_config(limits, numbers, held);
    ex::Sink sink{&ex::CommandQueue::send, &queue_};
    if (!shared_name.empty()) {
      shared_ = std::make_unique<ex::SharedCommand>(shared_name, ex::SharedCommand::Side::kWriter);
      sink = {&ex::SharedCommand::send, shared_.get()};
    }
    const auto [priority, cpu, locked] = realtime;
    executor_ = std::make_unique<ex::Executor>(config, ex::Realtime{priority, cpu, locked}, sink);
  }

  void start(const std::vector<double>& position) {
    check_position(position, executor_->core());
    executor_->start(position.data());
  }
  void stop() { executor_->stop(); }
  bool runs() const { return executor_->runs(); }

  // Actions [H, dims] fp64, contiguous.
  std::tuple<std::string, std::uint64_t> submit(std::uintptr_t actions, int steps, int dims,
                                                std::int64_t observed) {
    std::uint64_t id = 0;
    const auto* numbers = reinterpret_cast<const double*>(actions);
    const ex::Verdict verdict = executor_->submit(numbers, steps, dims, observed, &id);
    return {ex::verdict_name(verdict), id};
  }
  void reset() { executor_->reset(); }
  void halt() { executor_->halt(); }
  void stall(double seconds) { executor_->stall(static_cast<std::int64_t>(seconds * 1e9)); }

  std::optional<CommandTuple> next_command(double patience) {
    ex::Command command;
    nanobind::gil_scoped_release unlocked;
    if (!queue_.pop(&command, patience)) return std::nullopt;
    return command_tuple(command);
  }

  std::string state() const { return ex::state_name(executor_->core().state()); }
  std::vector<std::string> statements() const { return executor_->statements(); }
  std::vector<TraceTuple> trace(std::uint64_t most) const {
    std::vector<TraceTuple> found;
    for (const ex::TraceEntry& e : executor_->trace().last(most))
      found.emplace_back(e.tick, e.chunk, e.time, e.late, ex::state_name(e.state));
    return found;
  }
  // Counts, and lateness [s] by share of ticks.
  std::map<std::string, double> counters() const;

 private:
  ex::CommandQueue queue_;
  std::unique_ptr<ex::SharedCommand> shared_;
  std::unique_ptr<ex::Executor> executor_;  // ends before what it sends to
};

inline std::map<std::string, double> Executor::counters() const {
  const ex::Core& core = executor_->core();
  const ex::Counters& c = core.counters();
  const auto number = [](std::uint64_t n) { return static_cast<double>(n); };
  std::map<std::string, double> found{
      {"ticks", number(c.ticks.get())},       {"missed", number(c.missed.get())},
      {"limited", number(c.limited.get())},   {"chunks", number(c.chunks.get())},
      {"replaced", number(c.replaced.get())}, {"expired_late", number(c.expired.get())},
      {"starved", number(c.starved.get())},   {"stops", number(c.stops.get())},
      {"faults", number(c.faults.get())},     {"sink_failures", number(c.sink_failures.get())},
      {"refused", number(c.refused.get())},   {"late_max", c.lateness.most()}};
  for (int v = 0; v < 6; ++v) {
    const auto verdict = static_cast<ex::Verdict>(v);
    found[std::string("submitted_") + ex::verdict_name(verdict)] = number(core.verdicts(verdict));
  }
  const std::pair<const char*, double> shares[] = {
      {"late_p50", 0.5}, {"late_p99", 0.99}, {"late_p99.9", 0.999}, {"late_p99.99", 0.9999}};
  for (const auto& [name, share] : shares) found[name] = c.lateness.quantile(share);
  return found;
}

// A reader of another process's commands.
class SharedCommands {
 public:
  explicit SharedCommands(const std::string& name)
      : shared_(name, ex::SharedCommand::Side::kReader) {}
  std::optional<CommandTuple> newest() const {
    ex::Command command;
    if (!shared_.read(&command)) return std::nullopt;
    return command_tuple(command);
  }

 private:
  ex::SharedCommand shared_;
};

}  // namespace vlakern::python
