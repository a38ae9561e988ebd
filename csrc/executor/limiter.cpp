#include "executor/limiter.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "common/error.h"
#include "executor/fault_point.h"

namespace vlakern::executor {

namespace {

// Ticks of braking that are looked ahead; a robot that needs more cannot be stopped in time.
constexpr int kMostTicks = 20000;
// Halvings between braking and what is asked for, near a limit.
constexpr int kHalvings = 16;
// Steps of the search for the acceleration that ends on the target.
constexpr int kSecants = 6;
// Rounding of sums of commands, as a share of a limit.
constexpr double kSlack = 1e-9;
// Of what a limit may be.
constexpr double kFarthest = 1e9, kSmallest = 1e-9, kLargest = 1e12;
// The shortest step of a tick at full speed, as a share of the largest position: fp64 leaves a
// share of 2e-6 of it to rounding.
constexpr double kFinest = 1e-10;
// Of the last look, which must not take rounding for a fault.
constexpr double kSoundSlack = 1e-5;

// The largest first step a of a sequence a, a - step, a - 2 step, ... (as long as it is positive)
// whose sum is `total`.
double first_of_series(double total, double step) {
  if (!(step < kUnlimited) || total <= step) return total;
  const double s = total / step;
  double m = std::floor((std::sqrt(8.0 * s + 1.0) - 1.0) / 2.0);
  while (m * (m + 1.0) / 2.0 > s) m -= 1.0;
  while ((m + 1.0) * (m + 2.0) / 2.0 <= s) m += 1.0;
  return (m + (s - m * (m + 1.0) / 2.0) / (m + 1.0)) * step;
}

AxisState moved(const AxisState& now, double a) { return {now.q + now.v + a, now.v + a, a}; }

bool at_rest(const AxisState& s) { return s.v == 0.0 && s.a == 0.0; }

bool inside(double q, const AxisLimits& l) { return q >= l.lo && q <= l.hi; }

// Where a state that brakes comes to rest.
double resting_place(AxisState s, const AxisLimits& l) {
  // Above this speed it still brakes with all it has in the tick after the next.
  const double ramps = std::floor(l.acceleration / l.jerk);
  const double ramp = ramps * (l.acceleration - l.jerk * (ramps + 1.0) / 2.0);
  const double steady = l.acceleration + ramp;
  for (int tick = 0; tick < kMostTicks && !at_rest(s); ++tick) {
    s = brake(s, l);
    // Ticks of the same braking at once.
    if (s.a != std::copysign(l.acceleration, -s.v)) continue;
    const double n = std::floor((std::abs(s.v) - steady) / l.acceleration);
    if (!(n > 0.0)) continue;
    s.q += n * (s.v + s.a * (n + 1.0) / 2.0);
    s.v += n * s.a;
  }
  return s.q;
}

// The acceleration in [least, most] with which to approach a target that is at `target` next and
// moves by `moves` per tick, so that braking relative to it would end on it.
double towards(const AxisState& now, double target, double moves, double least, double most,
               const AxisLimits& l) {
  if (!(l.jerk < kUnlimited)) {
    const double behind = target - moves - now.q;
    const double closing = std::copysign(first_of_series(std::abs(behind), l.acceleration), behind);
    return std::clamp(moves + closing - now.v, least, most);
  }
  const auto passes_by = [&](double a) {
    const AxisState next = moved(now, a);
    return resting_place({next.q - target, next.v - moves, a}, l);
  };
  double low = least, high = most, below = passes_by(low), above = passes_by(high);
  if (above <= 0.0) return high;
  if (below >= 0.0) return low;
  double a = low;
  for (int i = 0; i < kSecants; ++i) {
    // Regula falsi with Illinois' halving: the place grows with the acceleration.
    a = (low * above - high * below) / (above - below);
    const double found = passes_by(a);
    if (found == 0.0) break;
    if (found < 0.0) {
      low = a, below = found, above /= 2.0;
    } else {
      high = a, above = found, below /= 2.0;
    }
  }
  return a;
}

std::string said(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

std::string at(std::size_t i) { return " of dimension " + std::to_string(i); }

void check_length(const std::vector<double>& values, std::size_t dims, const char* name) {
  if (values.size() == dims) return;
  throw InputError(std::string("limits.") + name + " has " + std::to_string(values.size()) +
                   " values, expected " + std::to_string(dims) + ", one per dimension");
}

void check_positive(const std::vector<double>& values, const char* name) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (values[i] >= kSmallest && values[i] <= kLargest) continue;
    throw InputError(std::string("limits.") + name + at(i) + " is " + said(values[i]) +
                     ", expected 1e-9 to 1e12; choose other units");
  }
}

}  // namespace

void Limits::check() const {
  const std::size_t dims = position_min.size();
  if (dims == 0)
    throw InputError(
        "limits have no dimension; give position_min, position_max and"
        " velocity of every command");
  check_length(position_max, dims, "position_max");
  check_length(velocity, dims, "velocity");
  if (!acceleration.empty()) check_length(acceleration, dims, "acceleration");
  if (!jerk.empty()) check_length(jerk, dims, "jerk");
  if (!jerk.empty() && acceleration.empty())
    throw InputError("limits.jerk needs limits.acceleration; declare both");
  for (std::size_t i = 0; i < dims; ++i) {
    const double lo = position_min[i], hi = position_max[i];
    if (lo >= -kFarthest && hi <= kFarthest && lo < hi) continue;
    throw InputError("limits.position_min and position_max" + at(i) + " are " + said(lo) + " and " +
                     said(hi) + ", expected numbers from -1e9 to 1e9, the first smaller");
  }
  check_positive(velocity, "velocity");
  check_positive(acceleration, "acceleration");
  check_positive(jerk, "jerk");
}

AxisState brake(const AxisState& now, const AxisLimits& l) {
  // After a the speed left is what a - J, a - 2 J, ... take away: it ends with both at 0.
  const double wanted = std::min(first_of_series(std::abs(now.v), l.jerk), l.acceleration);
  const double a = std::clamp(std::copysign(wanted, -now.v), now.a - l.jerk, now.a + l.jerk);
  AxisState next = moved(now, a);
  // What rounding leaves is no motion; the last change of acceleration is below J.
  if (std::abs(next.v) <= 1e-12 * l.velocity && std::abs(a) <= l.jerk) {
    next.q = now.q;
    next.v = 0.0;
    next.a = -now.v;
  }
  return next;
}

bool can_stop(AxisState s, const AxisLimits& l) {
  for (int tick = 0; tick < kMostTicks; ++tick) {
    if (!inside(s.q, l) || std::abs(s.v) > l.velocity * (1.0 + kSlack)) return false;
    if (at_rest(s)) return true;
    s = brake(s, l);
  }
  return false;
}

AxisState follow(const AxisState& now, double before, double target, const AxisLimits& l) {
  target = std::clamp(target, l.lo, l.hi);
  const double moves = std::clamp(target - std::clamp(before, l.lo, l.hi), -l.velocity, l.velocity);
  const AxisState stopping = brake(now, l);
  const double least = std::max({now.a - l.jerk, -l.acceleration, -l.velocity - now.v});
  const double most = std::min({now.a + l.jerk, l.acceleration, l.velocity - now.v});
  if (least > most) return stopping;
  // On a path that the limits allow it stays on it, to the last bit; what follows only knows of
  // targets that move evenly.
  const double onto = target - now.q - now.v;
  if (std::abs(now.q - before) <= l.jerk / 4.0 && onto >= least && onto <= most) {
    const AxisState there = moved(now, onto);
    if (l.jerk < kUnlimited && can_stop(there, l)) return there;
  }
  AxisState chosen = moved(now, towards(now, target, moves, least, most, l));
  if (can_stop(chosen, l)) return chosen;
  double good = stopping.a, bad = chosen.a;
  chosen = stopping;
  for (int i = 0; i < kHalvings; ++i) {
    const AxisState middle = moved(now, (good + bad) / 2.0);
    if (can_stop(middle, l)) {
      good = middle.a;
      chosen = middle;
    } else {
      bad = middle.a;
    }
  }
  return chosen;
}

Limiter::Limiter(const Limits& limits, double tick_rate) : tick_rate_(tick_rate) {
  limits.check();
  const double T = 1.0 / tick_rate;
  for (std::size_t i = 0; i < limits.position_min.size(); ++i) {
    const double a = limits.acceleration.empty() ? kUnlimited : limits.acceleration[i] * T * T;
    const double j = limits.jerk.empty() ? kUnlimited : limits.jerk[i] * T * T * T;
    const double lo = limits.position_min[i], hi = limits.position_max[i];
    limits_.push_back({lo, hi, limits.velocity[i] * T, a, j});
    const double far = std::max(std::abs(lo), std::abs(hi));
    if (limits_[i].velocity >= kFinest * far) continue;
    throw InputError("limits.velocity" + at(i) + " is " + said(limits.velocity[i]) + " beside " +
                     said(far) + ": a tick's step is lost in rounding; expected at least " +
                     said(kFinest * far * tick_rate) + ", or positions closer to 0");
  }
  states_.resize(limits_.size());
  before_.resize(limits_.size());
}

void Limiter::start(const double* position) {
  for (std::size_t i = 0; i < limits_.size(); ++i) {
    if (!inside(position[i], limits_[i]))
      throw InputError("the robot's position" + at(i) + " is " + std::to_string(position[i]) +
                       ", outside its limits " + std::to_string(limits_[i].lo) + " to " +
                       std::to_string(limits_[i].hi) + "; move it inside before control starts");
  }
  for (std::size_t i = 0; i < limits_.size(); ++i) states_[i] = {position[i], 0.0, 0.0};
  before_ = states_;
}

bool Limiter::advance(const double* before, const double* target) {
  bool limited = false;
  before_ = states_;
  for (std::size_t i = 0; i < limits_.size(); ++i) {
    states_[i] = follow(states_[i], before[i], target[i], limits_[i]);
    VLAKERN_FAULT_POINT(kLimited, &states_[i].q, 3);
    limited |= std::abs(states_[i].q - target[i]) > 1e-9 * (limits_[i].hi - limits_[i].lo);
  }
  return limited;
}

bool Limiter::stop() {
  before_ = states_;
  for (std::size_t i = 0; i < limits_.size(); ++i) {
    if (!at_rest(states_[i])) states_[i] = brake(states_[i], limits_[i]);
    VLAKERN_FAULT_POINT(kLimited, &states_[i].q, 3);
  }
  return rests();
}

bool Limiter::sound() const {
  for (std::size_t i = 0; i < limits_.size(); ++i) {
    const AxisState &was = before_[i], &is = states_[i];
    const AxisLimits& l = limits_[i];
    // Written so that a NaN anywhere is no.
    const double grain = 1e-12 * l.velocity, step = l.velocity * (1.0 + kSoundSlack);
    const bool kept = is.q >= l.lo && is.q <= l.hi && std::abs(is.q - was.q) <= step &&
                      std::abs(is.v) <= step &&
                      std::abs(is.a) <= l.acceleration * (1.0 + kSoundSlack) + grain &&
                      std::abs(is.a - was.a) <= l.jerk * (1.0 + kSoundSlack) + grain;
    // The parts agree, so that what is checked of them is true of what is sent.
    const double rounding = kSoundSlack * l.velocity;
    const bool agrees =
        std::abs(is.q - was.q - is.v) <= rounding && std::abs(is.v - was.v - is.a) <= grain;
    if (!kept || !agrees) return false;
  }
  return true;
}

void Limiter::brake_instead() {
  states_ = before_;
  stop();
}

bool Limiter::rests() const { return std::all_of(states_.begin(), states_.end(), at_rest); }

}  // namespace vlakern::executor
