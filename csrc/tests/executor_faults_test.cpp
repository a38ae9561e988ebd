// Runs the executor with numbers that are spoilt on their way to the sink, which its fault points
// let in, and with threads, sinks and calls that come at the wrong time.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>

#include "common/error.h"
#include "executor/fault_point.h"
#include "executor_testing.h"

namespace {

using namespace vlakern::executor;           // NOLINT: a test of this room alone
using namespace vlakern::executor::testing;  // NOLINT

constexpr Stage kStages[] = {Stage::kQueued, Stage::kInterpolated, Stage::kLimited,
                             Stage::kCommand};
constexpr const char* kNames[] = {"queued", "interpolated", "limited", "command"};

struct Fault {
  bool armed = false, struck = false;
  Stage stage = Stage::kQueued;
  int calls = 0, index = 0;
  double value = 0.0;
} fault;

void strike(Stage stage, double* numbers, int count) {
  if (!fault.armed || stage != fault.stage || fault.calls-- > 0) return;
  numbers[fault.index % count] = fault.value;
  fault.armed = false;
  fault.struck = true;
}

// Beyond every limit that random_config() makes.
double spoilt_value(Random& random, bool finite_too) {
  const double values[] = {NAN, INFINITY, -INFINITY, 1e300, -1e3};
  return values[random.below(finite_too ? 5 : 3)];
}

// A robot, and one that is the same and is never struck.
struct Pair {
  explicit Pair(Random& random)
      : config(random_config(random)),
        q(random_position(random, config)),
        core(config),
        twin(config),
        watcher(config, q),
        period(static_cast<Nanoseconds>(1e9 / config.tick_rate)) {
    core.start(q.data());
    twin.start(q.data());
  }

  void submit(Random& random, bool both) {
    const int steps = 1 + random.below(config.most_steps);
    const auto actions = random_chunk(random, config, steps, false);
    std::uint64_t id = 0;
    core.submit(actions.data(), steps, config.limits.dims(), now, now, &id);
    if (both) twin.submit(actions.data(), steps, config.limits.dims(), now, now, &id);
  }

  void tick(int trial) {
    now += period;
    core.tick(now, &command);
    fault.armed = false;
    const double worst = watcher.worst(command);
    if (worst > kTolerance) fail("a command leaves its limits by", trial, worst);
  }

  Config config;
  std::vector<double> q;
  Core core, twin;
  Watcher watcher;
  Nanoseconds period, now = 1000000000;
  Command command{}, wanted{};
};

// One number of a chunk that waits: the former chunk goes on, to the last bit.
bool strike_queue(Pair& robot, Random& random, int trial) {
  for (int k = random.below(6); k > 0; --k) {
    if (random.below(3) == 0) robot.submit(random, true);
    robot.tick(trial);
    robot.twin.tick(robot.now, &robot.wanted);
  }
  const std::uint64_t chunk = robot.command.chunk;
  fault = {true, false, Stage::kQueued, 0, random.below(1 << 20), spoilt_value(random, false)};
  robot.submit(random, false);
  for (int k = 0; k < 4; ++k) {
    robot.tick(trial);
    robot.twin.tick(robot.now, &robot.wanted);
    if (robot.command.state != robot.wanted.state || robot.command.chunk != chunk)
      fail("a spoilt chunk changes the state", trial, 0);
    for (int i = 0; i < robot.command.dims; ++i)
      if (robot.command.position[i] != robot.wanted.position[i])
        fail("a spoilt chunk changes the command", trial, robot.command.position[i]);
  }
  return fault.struck;
}

// One number in the tick: nothing of it is sent, the robot brakes at once and a fault is latched.
bool strike_tick(Pair& robot, Random& random, Stage stage, int trial) {
  robot.core.reset();
  robot.tick(trial);
  robot.submit(random, false);
  for (int k = random.below(12); k > 0; --k) robot.tick(trial);
  const bool finite_too = stage == Stage::kLimited || stage == Stage::kCommand;
  const double value = spoilt_value(random, finite_too);
  fault = {true, false, stage, random.below(4), random.below(kMostDims), value};
  for (int k = 0; k < 5 && !fault.struck; ++k) {
    fault.armed = true;
    robot.tick(trial);
  }
  if (!fault.struck) return false;  // nothing is interpolated where no chunk runs
  if (robot.command.state != State::kFault) fail("no fault is latched", trial, 0);
  double before = kUnlimited;
  for (int k = 0; k < 3; ++k) {
    robot.tick(trial);
    // With a limit of jerk it may go on gaining speed for as long as that takes back.
    if (robot.config.limits.jerk.empty() && std::abs(robot.command.velocity[0]) > before)
      fail("it does not brake", trial, robot.command.velocity[0]);
    before = std::abs(robot.command.velocity[0]) * (1.0 + 1e-9);
    if (robot.command.state != State::kFault) fail("the fault is forgotten", trial, 0);
  }
  return true;
}

void test_faults(int strikes, Random& random) {
  fault_point = strike;
  int counts[4] = {0, 0, 0, 0};
  for (int trial = 0; counts[0] + counts[1] + counts[2] + counts[3] < strikes; ++trial) {
    const int which = trial % 4;
    Pair robot(random);
    std::uint64_t struck = 0;
    for (int k = 0; k < 20; ++k)
      struck += which == 0 ? strike_queue(robot, random, trial)
                           : strike_tick(robot, random, kStages[which], trial);
    const std::uint64_t refused = robot.core.counters().refused.get();
    if (refused != struck)
      fail("spoilt numbers that were not counted", trial,
           static_cast<double>(struck) - static_cast<double>(refused));
    counts[which] += static_cast<int>(struck);
  }
  fault_point = nullptr;
  std::printf("faults:");
  for (int i = 0; i < 4; ++i) std::printf(" %d %s", counts[i], kNames[i]);
  std::printf("\n");
}

Config small_config(double rate) {
  Config config;
  config.tick_rate = rate;
  config.limits = {{-1.0}, {1.0}, {2.0}, {20.0}, {}};
  return config;
}

void wait_for(const Executor& executor, State state) {
  for (int k = 0; executor.core().state() != state; ++k) {
    if (k == 20000) fail("a state that never comes", static_cast<int>(state), 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

struct Context {
  std::atomic<std::uint64_t> calls{0};
  std::atomic<bool> refused{false};
  Executor* executor = nullptr;
};

int count_calls(void* context, const Command&) {
  static_cast<Context*>(context)->calls.fetch_add(1);
  return 0;
}

int throw_at_ten(void* context, const Command&) {
  if (static_cast<Context*>(context)->calls.fetch_add(1) == 10)
    throw std::runtime_error("the robot has gone");
  return 0;
}

int stop_itself(void* context, const Command&) {
  auto* seen = static_cast<Context*>(context);
  if (seen->calls.fetch_add(1) == 10) {
    try {
      seen->executor->stop();
    } catch (const vlakern::InputError&) {
      seen->refused.store(true);
      return 1;
    }
  }
  return 0;
}

// A sink that throws, or that stops its executor, is a fault and not the end of the program.
void test_sinks() {
  const double q = 0.0;
  for (auto* send : {throw_at_ten, stop_itself}) {
    Context seen;
    Executor executor(small_config(1000.0), {}, {send, &seen});
    seen.executor = &executor;
    executor.start(&q);
    wait_for(executor, State::kFault);
    if (executor.core().counters().sink_failures.get() == 0) fail("no failure is counted", 0, 0);
    if (send == stop_itself && !seen.refused.load()) fail("a sink stopped its executor", 0, 0);
  }
  std::printf("sinks: 2\n");
}

// Threads that start, stop, halt, reset and hand in without asking each other; then it is destroyed
// while it runs.
void test_lifecycle(int rounds) {
  Context seen;
  {
    Executor executor(small_config(1000.0), {}, {count_calls, &seen});
    std::vector<std::thread> threads;
    for (int one = 0; one < 3; ++one) {
      threads.emplace_back([&executor, rounds, one] {
        Random random{std::mt19937_64(static_cast<std::uint64_t>(one))};
        const double q = 0.0;
        for (int k = 0; k < rounds; ++k) {
          const double action = random.between(-1.0, 1.0);
          std::uint64_t id = 0;
          switch (random.below(5)) {
            case 0:
              try {
                executor.start(&q);
              } catch (const vlakern::InputError&) {  // it runs already
              }
              break;
            case 1:
              executor.stop();
              break;
            case 2:
              executor.reset();
              break;
            case 3:
              if (random.below(4) == 0) executor.halt();
              break;
            default:
              executor.submit(&action, 1, 1, monotonic_now(), &id);
          }
          std::this_thread::sleep_for(std::chrono::microseconds(random.below(3000)));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    const double q = 0.0;
    if (!executor.runs()) executor.start(&q);
  }
  const std::uint64_t calls = seen.calls.load();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  if (seen.calls.load() != calls) fail("a command after the end", 0, 0);
  std::printf("lifecycle: %d calls of 3 threads\n", 3 * rounds);
}

// What order of calls must not lose, or bring back.
void test_orders() {
  const Config config = small_config(200.0);
  const double q = 0.0, action = 0.5;
  std::uint64_t id = 0;
  Command command;
  Core core(config);
  core.submit(&action, 1, 1, 1, 2, &id);
  core.start(&q);
  core.tick(1000, &command);
  if (command.state != State::kWaiting) fail("a chunk of before the start is executed", 0, 0);
  core.reset();
  core.halt();
  core.tick(5000, &command);
  if (command.state != State::kFault) fail("a halt after a reset is lost", 0, 0);
  core.halt();
  core.reset();
  core.tick(10000, &command);
  if (command.state != State::kWaiting) fail("a reset after a halt does nothing", 0, 0);
  core.submit(&action, 1, 1, 10000, 10000, &id);
  core.tick(15000, &command);
  if (command.state != State::kRunning) fail("a chunk of one action does not run", 0, 0);
  core.finish();
  core.submit(&action, 1, 1, 16000, 16000, &id);
  core.tick(20000, &command);
  if (command.state == State::kRunning) fail("a chunk is begun after the end", 0, 0);
  std::printf("orders: 5\n");
}

}  // namespace

// executor_faults_test [STRIKES]
int main(int count, char** words) {
  const int strikes = count > 1 ? std::atoi(words[1]) : 20000;
  Random random{std::mt19937_64(9)};
  test_faults(strikes, random);
  test_orders();
  test_sinks();
  test_lifecycle(300);
  return 0;
}
