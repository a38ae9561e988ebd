// A policy drives a simulated arm from C++, without Python: the engine infers on this thread while
// the executor's thread sends a checked command per tick.
//
//   cpp_native_loop POLICY_DIRECTORY [SECONDS]     (for policies of Meta-World's arm)
//
// This is no safety-rated function: the robot's own emergency stop stays in charge.
#include <vlakern/executor/executor.h>
#include <vlakern/policy/policy.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

namespace ex = vlakern::executor;

constexpr int kDims = 4;             // the hand's x, y, z [m], and the gripper's effort
constexpr double kMetres = 0.01;     // of an action of 1, per step
constexpr double kTickRate = 200.0;  // [Hz]

// Goes where it is told at once; its cameras see a grey table.
struct Arm {
  std::array<std::atomic<double>, kDims> position{0.0, 0.6, 0.2, 0.0};

  static int send(void* arm, const ex::Command& command) {
    for (std::size_t i = 0; i < kDims; ++i)
      static_cast<Arm*>(arm)->position[i] = command.position[i];
    return 0;
  }
  std::array<double, kDims> look() const {
    return {position[0], position[1], position[2], position[3]};
  }
};

int run(const std::string& directory, double seconds) {
  vlakern::Policy policy(directory);
  const vlakern::PolicyFacts& facts = policy.facts();
  if (facts.actions != kDims || facts.states != kDims) {
    std::fprintf(stderr,
                 "this arm takes %d numbers, the policy gives %d; use one of Meta-World's\n", kDims,
                 facts.actions);
    return 1;
  }
  ex::Config config;
  config.tick_rate = kTickRate;
  config.policy_rate = facts.control_rate;
  config.most_steps = facts.chunk;
  config.held = {3};
  config.limits.position_min = {-0.5, 0.3, 0.0, -1.0};
  config.limits.position_max = {0.5, 1.0, 0.5, 1.0};
  config.limits.velocity = {1.0, 1.0, 1.0, 400.0};
  Arm arm;
  ex::Executor executor(config, {}, {Arm::send, &arm});
  executor.start(arm.look().data());

  std::vector<double> latencies;                                     // [ms]
  vlakern::ActionPrefix prefix{{}, 0, vlakern::PrefixForm::kCheap};  // what goes on meanwhile
  const ex::Nanoseconds end = ex::monotonic_now() + static_cast<ex::Nanoseconds>(seconds * 1e9);
  for (std::uint64_t turn = 0; ex::monotonic_now() < end; ++turn) {
    const ex::Nanoseconds observed = ex::monotonic_now();
    const auto now = arm.look();
    vlakern::Observation observation;
    const std::vector<std::uint8_t> picture(
        static_cast<std::size_t>(3 * facts.image_size * facts.image_size), 128);
    for (const std::string& view : facts.views) {
      observation.images[view] = {picture.data(), facts.image_size, facts.image_size};
    }
    observation.state = {now[0], now[1], now[2], 1.0};
    observation.instruction = "reach the goal";
    const std::vector<float> actions = policy.act(observation, policy.noise(turn), prefix);
    // Steps of the hand become the places that it is to be at.
    std::vector<double> commands;
    std::array<double, kDims> target = now;
    for (std::size_t i = 0; i < actions.size(); ++i) {
      const double action = std::clamp(static_cast<double>(actions[i]), -1.0, 1.0);
      double& value = target[i % kDims];
      value = i % kDims < 3 ? value + kMetres * action : action;
      commands.push_back(value);
    }
    latencies.push_back(static_cast<double>(ex::monotonic_now() - observed) * 1e-6);
    std::uint64_t id = 0;
    executor.submit(commands.data(), facts.chunk, kDims, observed, &id);
    prefix.actions.assign(actions.begin() + facts.execute * kDims, actions.end());
    const double steps = std::ceil(1e-3 * latencies.back() * facts.control_rate);
    prefix.frozen = static_cast<int>(std::min<double>(steps, facts.chunk - facts.execute));
    ex::sleep_until(observed +
                    static_cast<ex::Nanoseconds>(1e9 * facts.execute / facts.control_rate));
  }
  const auto& counters = executor.core().counters();
  executor.stop();
  const auto at = arm.look();
  std::sort(latencies.begin(), latencies.end());
  std::printf("inference: %zu chunks, p50 %.2f ms, max %.2f ms\n", latencies.size(),
              latencies[latencies.size() / 2], latencies.back());
  std::printf("ticks: %llu at %.0f Hz, missed %llu, late p99 %.3f ms\n",
              static_cast<unsigned long long>(counters.ticks.get()), kTickRate,
              static_cast<unsigned long long>(counters.missed.get()),
              counters.lateness.quantile(0.99) * 1e3);
  std::printf("chunks begun: %llu; the hand is at %.3f %.3f %.3f\n",
              static_cast<unsigned long long>(counters.chunks.get()), at[0], at[1], at[2]);
  return 0;
}

int main(int count, char** words) {
  if (count < 2) {
    std::fprintf(stderr, "usage: %s POLICY_DIRECTORY [SECONDS]\n", words[0]);
    return 2;
  }
  try {
    return run(words[1], count > 2 ? std::atof(words[2]) : 3.0);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
