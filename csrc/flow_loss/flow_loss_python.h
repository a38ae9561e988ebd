// The Python face of flow_mix and flow_loss.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <string>
#include <tuple>

#include "common/philox.h"
#include "common/tensor_caster.h"
#include "common/vec_scalar.h"
#include "flow_loss/flow_loss.h"

namespace vlakern::python {

using Maybe = std::optional<Tensor>;

// action, noise, rows, slots, seed
using FlowSource = std::tuple<Tensor, Maybe, Maybe, Maybe, std::int64_t>;

inline FlowTensors flow_tensors(const FlowSource& source) {
  const auto& [action, noise, rows, slots, seed] = source;
  return {action, noise, rows, slots, seed};
}

inline void flow_mix(const FlowSource& source, const Maybe& tau, const Tensor& x_out,
                     const Tensor& tau_out, const std::tuple<int, double, double>& law,
                     const std::string& isa, int threads) {
  const auto [kind, alpha, s] = law;
  const FlowTau drawn{static_cast<TauLaw>(kind), alpha, s};
  flow_mix_cpu(flow_mix_params(flow_tensors(source), {tau, x_out, tau_out}, drawn), isa, threads);
}

inline void flow_loss(const FlowSource& source, const Tensor& velocity, const Maybe& mask,
                      const Maybe& group, const Maybe& weights, const Tensor& coefficients,
                      const Tensor& loss, const std::string& isa, int threads) {
  const FlowLossTensors t{velocity, mask, group, weights, coefficients, loss, {}};
  flow_loss_cpu(flow_loss_params(flow_tensors(source), t), isa, threads);
}

inline void flow_loss_gradient(const FlowSource& source, const Tensor& velocity, const Maybe& mask,
                               const Maybe& group, const Tensor& coefficients,
                               const Tensor& gradient, float scale, const std::string& isa,
                               int threads) {
  const FlowLossTensors t{velocity, mask, group, {}, coefficients, {}, gradient};
  flow_loss_gradient_cpu(flow_loss_params(flow_tensors(source), t), scale, isa, threads);
}

using Words = std::tuple<std::uint32_t, std::uint32_t, std::uint32_t, std::uint32_t>;

// The generator itself, for known answers.
inline Words philox(const Words& counter, std::uint32_t key0, std::uint32_t key1) {
  const auto [a, b, c, d] = counter;
  std::uint32_t words[4] = {a, b, c, d};
  philox_rounds<VecScalar>(words, key0, key1);
  return {words[0], words[1], words[2], words[3]};
}

}  // namespace vlakern::python
