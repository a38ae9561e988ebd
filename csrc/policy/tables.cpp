#include "policy/tables.h"

#include <algorithm>
#include <cmath>

namespace vlakern {

Angles position_angles(const ModelConfig& model, std::int64_t positions) {
  const std::int64_t dim = model.sizes.head_dim;
  Angles angles;
  for (std::int64_t t = 0; t < positions; ++t) {
    for (std::int64_t i = 0; i < dim; i += 2) {
      const double exponent = static_cast<double>(i) / static_cast<double>(dim);
      const double angle = static_cast<double>(t) * std::pow(model.rope_theta, -exponent);
      angles.cos.push_back(static_cast<float>(std::cos(angle)));
      angles.sin.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  return angles;
}

std::vector<float> evaluation_times(const ModelSizes& sizes) {
  const double steps = static_cast<double>(sizes.steps);
  const auto dtau = static_cast<float>(1.0 / steps);
  std::vector<float> times;
  for (std::int64_t k = 0; k < sizes.steps; ++k) {
    const auto tau = static_cast<float>(static_cast<double>(k) / steps);
    times.push_back(tau);
    if (sizes.solver == "midpoint") times.push_back(tau + 0.5f * dtau);
    if (sizes.solver == "heun") times.push_back(tau + dtau);
  }
  times.push_back(1.0f);
  return times;
}

std::vector<float> time_embedding(float tau, std::int64_t width, const TimeRule& rule) {
  constexpr double kPi = 3.14159265358979323846;
  const std::int64_t half = width / 2;
  double t = rule.reverse ? 1.0 - static_cast<double>(tau) : static_cast<double>(tau);
  // 0.7 arrives as fp32, a hair below; 1e-4 of a bucket puts it back where it belongs.
  t = rule.buckets > 0 ? std::floor(t * static_cast<double>(rule.buckets) + 1e-4) : t * rule.scale;
  std::vector<float> out(static_cast<std::size_t>(2 * half));
  for (std::int64_t i = 0; i < half; ++i) {
    const auto place = static_cast<double>(i);
    double frequency = std::exp(place * (-std::log(rule.max_period) / static_cast<double>(half)));
    if (rule.min_period) {
      const double ratio = std::log(rule.max_period / *rule.min_period);
      const double share = ratio / static_cast<double>(std::max<std::int64_t>(half - 1, 1));
      frequency = 2 * kPi / (*rule.min_period * std::exp(place * share));
    }
    out[static_cast<std::size_t>(i)] = static_cast<float>(std::sin(t * frequency));
    out[static_cast<std::size_t>(half + i)] = static_cast<float>(std::cos(t * frequency));
  }
  return out;
}

}  // namespace vlakern
