// What the executor's tests share: random robots, and what a robot would measure of its commands.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "executor/executor.h"

namespace vlakern::executor::testing {

constexpr double kTolerance = 1e-6;  // of differences of rounded commands, per limit

struct Random {
  std::mt19937_64 bits;
  double between(double a, double b) {
    return a + (b - a) * std::generate_canonical<double, 53>(bits);
  }
  double decades(double a, double b) { return std::pow(10.0, between(a, b)); }
  int below(int n) { return static_cast<int>(bits() % static_cast<std::uint64_t>(n)); }
};

[[noreturn]] inline void fail(const char* what, int trial, double found) {
  std::printf("trial %d: %s (%g)\n", trial, what, found);
  std::exit(1);
}

inline Config random_config(Random& random) {
  Config config;
  config.tick_rate = random.decades(1.7, 3.0);
  config.policy_rate = random.between(1.0, config.tick_rate);
  config.most_steps = 1 + random.below(40);
  const int dims = 1 + random.below(4), kind = random.below(3);
  for (int i = 0; i < dims; ++i) {
    const double lo = random.between(-3.0, 0.0), speed = random.decades(-1.0, 1.0);
    const double acceleration = speed * random.decades(0.0, 2.0);
    config.limits.position_min.push_back(lo);
    config.limits.position_max.push_back(lo + random.between(0.05, 6.0));
    config.limits.velocity.push_back(speed);
    if (kind >= 1) config.limits.acceleration.push_back(acceleration);
    if (kind == 2) config.limits.jerk.push_back(acceleration * random.decades(0.0, 2.5));
    if (random.below(8) == 0) config.held.push_back(i);
  }
  return config;
}

// What a robot that only sees the commands would say: the largest share of a limit that they use.
class Watcher {
 public:
  Watcher(const Config& config, const std::vector<double>& q)
      : limits_(config.limits), rate_(config.tick_rate), q_(q), v_(q.size()), a_(q.size()) {}

  double worst(const Command& command) {
    double most = 0.0;
    for (std::size_t i = 0; i < q_.size(); ++i) {
      const double q = command.position[i];
      if (!std::isfinite(q) || !std::isfinite(command.velocity[i])) return kUnlimited;
      const double lo = limits_.position_min[i], hi = limits_.position_max[i];
      const double v = (q - q_[i]) * rate_, a = (v - v_[i]) * rate_, j = (a - a_[i]) * rate_;
      if (q < lo || q > hi) return kUnlimited;
      // Differences of commands carry their rounding, which each division by T enlarges.
      const double grain = 4e-16 * std::max(std::abs(lo), std::abs(hi)) * rate_;
      most = std::max(most, (std::abs(v) - grain) / limits_.velocity[i]);
      if (!limits_.acceleration.empty())
        most = std::max(most, (std::abs(a) - 2.0 * grain * rate_) / limits_.acceleration[i]);
      if (!limits_.jerk.empty())
        most = std::max(most, (std::abs(j) - 4.0 * grain * rate_ * rate_) / limits_.jerk[i]);
      q_[i] = q;
      v_[i] = v;
      a_[i] = a;
    }
    return most - 1.0;
  }

 private:
  const Limits& limits_;
  double rate_;
  std::vector<double> q_, v_, a_;
};

inline std::vector<double> random_chunk(Random& random, const Config& config, int steps,
                                        bool spoilt) {
  const int dims = config.limits.dims();
  std::vector<double> actions(static_cast<std::size_t>(steps * dims));
  const double wild = random.below(4) == 0 ? random.decades(0.0, 300.0) : 2.0;
  for (double& action : actions) action = random.between(-wild, wild);
  if (spoilt) {
    const double values[] = {NAN, INFINITY, -INFINITY};
    actions[static_cast<std::size_t>(random.below(steps * dims))] = values[random.below(3)];
  }
  return actions;
}

// Where a robot rests before it starts.
inline std::vector<double> random_position(Random& random, const Config& config) {
  std::vector<double> q;
  for (std::size_t i = 0; i < config.limits.position_min.size(); ++i)
    q.push_back(random.between(config.limits.position_min[i], config.limits.position_max[i]));
  return q;
}

}  // namespace vlakern::executor::testing
