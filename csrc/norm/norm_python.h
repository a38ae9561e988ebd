// The Python face of norm: a checked call on fixed memory, and the backward call.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include "common/tensor_caster.h"
#include "norm/norm.h"

namespace vlakern::python {

// Getting Python's lock back may take 5 ms, so only long calls release it.
class UnlockedIf {
 public:
  explicit UnlockedIf(bool is_long) {
    if (is_long) unlocked_.emplace();
  }

 private:
  std::optional<nanobind::gil_scoped_release> unlocked_;
};

class Norm {
 public:
  using Maybe = std::optional<Tensor>;

  Norm(const Tensor& x, const Maybe& weight, const Maybe& bias, const Maybe& scale,
       const Maybe& shift, const Maybe& gate, const Maybe& residual, const Maybe& row_group,
       const Tensor& y, const Maybe& h, const std::string& kind, float eps, const std::string& isa,
       int threads)
      : params_(norm_params({x, weight, bias, scale, shift, gate, residual, row_group, y, h}, kind,
                            eps)),
        isa_(select_isa(isa)),
        threads_(threads) {}

  void run() const {
    const UnlockedIf unlocked(params_.rows * params_.width > kLargestLocked);
    norm_cpu(params_, isa_, threads_);
  }

 private:
  static constexpr std::int64_t kLargestLocked = 1 << 18;  // elements, some 50 us
  NormParams params_;
  Isa isa_;
  int threads_;
};

using NormForward = std::tuple<Tensor, std::optional<Tensor>, std::optional<Tensor>,
                               std::optional<Tensor>, std::optional<Tensor>, std::optional<Tensor>,
                               std::optional<Tensor>, std::optional<Tensor>>;

// `t` is h and then what norm takes after x.
inline void norm_backward(const NormForward& t, const Tensor& dy, const Norm::Maybe& dh,
                          const Tensor& dx, const Norm::Maybe& dresidual,
                          const Norm::Maybe& dweight, const Norm::Maybe& dbias,
                          const Norm::Maybe& dscale, const Norm::Maybe& dshift,
                          const Norm::Maybe& dgate, const Tensor& partial, const std::string& kind,
                          float eps, const std::string& isa, int threads) {
  const auto& [h, weight, bias, scale, shift, gate, residual, row_group] = t;
  const NormGradientParams params = norm_gradient_params(
      {h, weight, bias, scale, shift, gate, residual, row_group, dx, {}},
      {dy, dh, dx, dresidual, dweight, dbias, dscale, dshift, dgate, partial}, kind, eps);
  norm_backward_cpu(params, select_isa(isa), threads);
}

}  // namespace vlakern::python
