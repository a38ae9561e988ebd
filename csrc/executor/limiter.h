// Commands that never leave their limits: position, velocity and, where declared, acceleration and
// jerk, for every dimension on its own.
//
// All numbers are per tick, so that the limits hold for the differences of what is sent, exactly as
// a robot measures them: q' = q + v', v' = v + a', |v'| <= V T, |a'| <= A T^2, |a' - a| <= J T^3.
#pragma once

#include <limits>
#include <vector>

namespace vlakern::executor {

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

// One value per dimension, in the units of the commands and seconds. Positions are at most 1e9 away
// from 0, the others from 1e-9 to 1e12: what fp32 holds too, and what no sum or product overflows.
struct Limits {
  std::vector<double> position_min, position_max;
  std::vector<double> velocity;
  std::vector<double> acceleration;  // empty: not declared
  std::vector<double> jerk;          // empty: not declared; needs an acceleration

  // Raises InputError naming the dimension that is wrong.
  void check() const;
  int dims() const { return static_cast<int>(position_min.size()); }
};

// A dimension's limits in units per tick.
struct AxisLimits {
  double lo, hi, velocity, acceleration, jerk;
};

struct AxisState {
  double q = 0.0, v = 0.0, a = 0.0;
};

// The state after one tick of the strongest braking that stays inside acceleration and jerk, and
// that ends at rest: v = a = 0.
AxisState brake(const AxisState& now, const AxisLimits& limits);
// Braking from here on stays inside position and velocity until it rests.
bool can_stop(AxisState state, const AxisLimits& limits);
// One tick towards a target that was at `before` and is at `target` next. A state that can stop
// leads to a state that can stop.
AxisState follow(const AxisState& now, double before, double target, const AxisLimits& limits);

class Limiter {
 public:
  Limiter(const Limits& limits, double tick_rate);

  // At rest at `position`. Raises InputError if that is not inside the limits.
  void start(const double* position);
  // One tick; returns whether some dimension could not reach its target.
  bool advance(const double* before, const double* target);
  // One tick of braking; returns whether all dimensions rest.
  bool stop();
  bool rests() const;
  // The last look at what is to be sent: every number is finite, and is inside every limit as the
  // difference from the tick before, whatever chose it.
  bool sound() const;
  // Brakes from the tick before, whose commands were sound, in place of the last tick.
  void brake_instead();

  int dims() const { return static_cast<int>(states_.size()); }
  double position(int i) const { return states_[static_cast<std::size_t>(i)].q; }
  // [unit/s]
  double velocity(int i) const { return states_[static_cast<std::size_t>(i)].v * tick_rate_; }

 private:
  double tick_rate_;
  std::vector<AxisLimits> limits_;
  std::vector<AxisState> states_, before_;
};

}  // namespace vlakern::executor
