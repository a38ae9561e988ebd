// The Python face of gated_mlp: a checked call on fixed memory, to be made again and again.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <optional>
#include <tuple>

#include "gated_mlp/gated_mlp.h"
#include "linear/linear_python.h"

namespace vlakern::python {

// Panels, scales of int8, bias, N, K and kind of packed weights.
using Packed = std::tuple<Tensor, std::optional<Tensor>, std::optional<Tensor>, std::int64_t,
                          std::int64_t, std::string>;

class GatedMlp {
 public:
  using Optional = std::optional<Tensor>;

  GatedMlp(const Tensor& x, const Packed& gate_up, const Packed& down, const Optional& residual,
           const Tensor& hidden, const Tensor& out, const Tensor& workspace,
           const std::string& activation, const std::string& isa, int threads)
      : params_(
            gated_mlp_params({x, tensors(gate_up), tensors(down), residual, hidden, out, workspace},
                             activation, isa, threads)) {}

  void run() const {
    const LinearParams& p = params_.gate_up;
    std::optional<nanobind::gil_scoped_release> unlocked;
    if (p.m * p.n * p.k > kLongestLocked) unlocked.emplace();
    gated_mlp_cpu(params_);
  }

 private:
  static PackedTensors tensors(const Packed& w) {
    return {std::get<0>(w), std::get<1>(w), std::get<2>(w),
            std::get<3>(w), std::get<4>(w), std::get<5>(w)};
  }

  GatedMlpParams params_;
};

inline auto gated_mlp_init() {
  return nanobind::init<const Tensor&, const Packed&, const Packed&, const GatedMlp::Optional&,
                        const Tensor&, const Tensor&, const Tensor&, const std::string&,
                        const std::string&, int>();
}

}  // namespace vlakern::python
