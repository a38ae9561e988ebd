// The Python face of ode_step: one function per backend, and the index arithmetic for tests.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include "common/tensor_caster.h"
#include "ode_step/ode_step.h"
#include "ode_step/ode_step_index.h"

namespace vlakern::python {

using Optional = std::optional<Tensor>;

inline void ode_step_cpu(const Tensor& x, const Tensor& v, const Optional& v0, const Tensor& tau,
                         const Tensor& dtau, const Optional& frozen, const Optional& frozen_len,
                         const Optional& slot_mask, const Tensor& x_out, const Tensor& tau_out,
                         bool tau_per_position, const std::tuple<float, float, float>& c,
                         const std::string& isa, int threads) {
  const auto [c0, c1, c_tau] = c;
  vlakern::ode_step_cpu({x, v, v0, tau, dtau, frozen, frozen_len, slot_mask, x_out, tau_out},
                        tau_per_position, {c0, c1, c_tau}, isa, threads);
}

inline void ode_step_cuda(const Tensor& x, const Tensor& v, const Optional& v0, const Tensor& tau,
                          const Tensor& dtau, const Optional& frozen, const Optional& frozen_len,
                          const Optional& slot_mask, const Tensor& x_out, const Tensor& tau_out,
                          bool tau_per_position, const std::tuple<float, float, float>& c,
                          std::uintptr_t stream) {
  const auto [c0, c1, c_tau] = c;
  vlakern::ode_step_cuda({x, v, v0, tau, dtau, frozen, frozen_len, slot_mask, x_out, tau_out},
                         tau_per_position, {c0, c1, c_tau}, stream);
}

// (b, h, a) of one CUDA thread.
inline auto ode_step_place(std::int64_t thread, std::int64_t positions, std::int64_t slots,
                           int run) {
  const OdeStepPlace at = vlakern::ode_step_place(thread, positions, (slots + run - 1) / run, run);
  return std::make_tuple(at.b, at.h, at.a);
}

// (run, block, grid, threads) of the CUDA launch for a contiguous update at this address.
inline auto ode_step_launch(std::int64_t rows, std::int64_t positions, std::int64_t slots,
                            std::uintptr_t address) {
  OdeStepParams p{};
  p.x = p.v = p.x_out = reinterpret_cast<void*>(address);
  for (auto* stride : {p.x_stride, p.v_stride, p.x_out_stride}) {
    stride[0] = positions * slots;
    stride[1] = slots;
    stride[2] = 1;
  }
  p.rows = rows;
  p.positions = positions;
  p.slots = slots;
  const OdeStepLaunch chosen = vlakern::ode_step_launch(p);
  return std::make_tuple(chosen.run, chosen.block, chosen.grid, chosen.threads);
}

}  // namespace vlakern::python
