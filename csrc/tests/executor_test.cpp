// Runs the executor without Python: random chunks, limits and times against what a robot would
// measure, in virtual time; and the threads under ThreadSanitizer.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "executor_testing.h"

namespace {

using namespace vlakern::executor;           // NOLINT: a test of this room alone
using namespace vlakern::executor::testing;  // NOLINT

// Chunks of any size, late, early, twice and spoilt: what is sent stays inside the limits.
void test_limits(int trials, Random& random) {
  std::uint64_t spoilt_seen = 0, chunks = 0;
  for (int trial = 0; trial < trials; ++trial) {
    const Config config = random_config(random);
    Core core(config);
    const std::vector<double> q = random_position(random, config);
    core.start(q.data());
    Watcher watcher(config, q);
    Nanoseconds now = 1000000000;
    for (int k = 0; k < 200; ++k) {
      now += static_cast<Nanoseconds>(1e9 / config.tick_rate) * (random.below(30) == 0 ? 7 : 1);
      // A machine that slept, or a clock that is none.
      if (random.below(100) == 0) now += (random.below(11000) - 1000) * Nanoseconds{1000000};
      if (random.below(10) == 0) {
        const int steps = 1 + random.below(config.most_steps);
        const bool spoilt = random.below(3) == 0;
        const auto actions = random_chunk(random, config, steps, spoilt);
        const Nanoseconds observed = now - random.below(300) * 1000000;
        std::uint64_t id = 0;
        const Verdict verdict =
            core.submit(actions.data(), steps, config.limits.dims(), observed, now, &id);
        if (spoilt && verdict == Verdict::kAccepted) fail("a spoilt chunk was accepted", trial, 0);
        spoilt_seen += spoilt ? 1 : 0;
        ++chunks;
      }
      if (random.below(60) == 0) core.reset();
      if (random.below(150) == 0) core.halt();
      Command command;
      core.tick(now, &command);
      const double worst = watcher.worst(command);
      if (worst > kTolerance) fail("a command leaves its limits by", trial, worst);
    }
    // The last look before the sink takes no rounding for a fault.
    if (core.counters().refused.get() != 0) fail("a sound command was refused", trial, 0);
  }
  std::printf("limits: %d robots, %llu chunks, %llu spoilt\n", trials,
              static_cast<unsigned long long>(chunks),
              static_cast<unsigned long long>(spoilt_seen));
}

// When inference ends, the stop begins in the tick of the deadline, and the fault in its own.
void test_watchdog(int trials, Random& random) {
  for (int trial = 0; trial < trials; ++trial) {
    Config config = random_config(random);
    Core core(config);
    std::vector<double> q = config.limits.position_min;
    core.start(q.data());
    const auto period = static_cast<Nanoseconds>(1e9 / config.tick_rate);
    Nanoseconds now = 1000000000 + random.below(1000000);
    const int steps = 1 + random.below(config.most_steps);
    const auto actions = random_chunk(random, config, steps, false);
    std::uint64_t id = 0;
    if (core.submit(actions.data(), steps, config.limits.dims(), now, now, &id) !=
        Verdict::kAccepted)
      fail("a good chunk was refused", trial, 0);
    const Nanoseconds begin = now + period;  // of a robot that rests: the tick that sees it
    const auto step = static_cast<Nanoseconds>(std::llround(1e9 / config.policy_rate));
    const Nanoseconds stop = begin + steps * step + 100000000, fault = stop + 400000000;
    Command command;
    do {
      now += period;
      core.tick(now, &command);
      const State wanted = now < begin + steps * step ? State::kRunning
                           : now < stop               ? State::kStarved
                           : now < fault              ? State::kStopping
                                                      : State::kFault;
      const bool stopped = command.state == State::kHolding && wanted == State::kStopping;
      if (command.state != wanted && !stopped)
        fail("the wrong state", trial, static_cast<double>(now - stop) * 1e-9);
    } while (command.state != State::kFault);
    if (core.submit(actions.data(), steps, config.limits.dims(), now, now, &id) != Verdict::kFault)
      fail("a latched fault took a chunk", trial, 0);
    core.reset();
    core.tick(now += period, &command);
    core.submit(actions.data(), steps, config.limits.dims(), now, now, &id);
    core.tick(now += period, &command);
    if (command.state != State::kRunning) fail("no chunk runs after a reset", trial, 0);
  }
  std::printf("watchdog: %d ends of inference\n", trials);
}

struct Seen {
  std::atomic<std::uint64_t> commands{0}, bad{0};
  Nanoseconds last = 0;
};

int look(void* context, const Command& command) {
  auto* seen = static_cast<Seen*>(context);
  seen->commands.fetch_add(1);
  if (command.time <= seen->last || !std::isfinite(command.position[0])) seen->bad.fetch_add(1);
  seen->last = command.time;
  return 0;
}

// Three threads hand chunks in, one reads, one stalls the clock, while the thread ticks.
void test_threads() {
  Config config;
  config.tick_rate = 1000.0;
  config.limits = {{-1.0}, {1.0}, {2.0}, {20.0}, {400.0}};
  Seen seen;
  Executor executor(config, {10, 0, false}, {look, &seen});
  const double q = 0.0;
  executor.start(&q);
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (int writer = 0; writer < 3; ++writer) {
    threads.emplace_back([&executor, &done, writer] {
      Random random{std::mt19937_64(static_cast<std::uint64_t>(writer))};
      std::vector<double> actions(16);
      while (!done.load()) {
        for (double& action : actions) action = random.between(-2.0, 2.0);
        if (random.below(4) == 0) actions[3] = NAN;
        std::uint64_t id = 0;
        executor.submit(actions.data(), 16, 1, monotonic_now(), &id);
        std::this_thread::sleep_for(std::chrono::milliseconds(random.below(8)));
      }
    });
  }
  threads.emplace_back([&executor, &done] {
    while (!done.load()) {
      if (executor.trace().last(100).size() > 100) std::abort();
      if (executor.core().counters().lateness.quantile(0.99) < 0.0) std::abort();
      std::this_thread::sleep_for(std::chrono::milliseconds(3));
    }
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  executor.stall(200000000);
  std::this_thread::sleep_for(std::chrono::milliseconds(600));
  done.store(true);
  for (std::thread& thread : threads) thread.join();
  executor.stop();
  const Counters& counters = executor.core().counters();
  if (seen.bad.load() != 0) fail("times that do not rise, or numbers that are none", 0, 0);
  if (counters.missed.get() < 190)
    fail("a stall of 200 ticks missed only", 0, static_cast<double>(counters.missed.get()));
  if (seen.commands.load() != counters.ticks.get()) fail("ticks without command", 0, 0);
  std::printf("threads: %llu commands, %llu ticks missed\n",
              static_cast<unsigned long long>(seen.commands.load()),
              static_cast<unsigned long long>(counters.missed.get()));
}

}  // namespace

// executor_test [ROBOTS]
int main(int count, char** words) {
  const int robots = count > 1 ? std::atoi(words[1]) : 1000;
  Random random{std::mt19937_64(7)};
  test_limits(robots, random);
  test_watchdog(3 * robots, random);
  test_threads();
  return 0;
}
