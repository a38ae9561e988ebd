// The Python face of linear: a checked call on fixed memory, to be made again and again.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>

#include "common/huge_pages.h"
#include "common/tensor_caster.h"
#include "linear/linear.h"
#include "linear/linear_limits.h"

namespace vlakern::python {

// Getting the interpreter's lock back may take 5 ms, so only long calls release it.
constexpr std::int64_t kLongestLocked = 1 << 24;  // products, some 100 us

class Linear {
 public:
  using Optional = std::optional<Tensor>;

  Linear(const Tensor& x, const Tensor& panels, const Optional& w_scale, const Optional& bias,
         const Optional& residual, const Optional& row_scale, const Tensor& out,
         const Tensor& workspace, std::int64_t n, std::int64_t k, const std::string& kind,
         const std::string& activation, const std::string& isa, int threads)
      : params_(linear_params({x, panels, w_scale, bias, residual, row_scale, out, workspace}, n, k,
                              kind, activation, isa, threads)) {}

  void run() const {
    std::optional<nanobind::gil_scoped_release> unlocked;
    if (params_.m * params_.n * params_.k > kLongestLocked) unlocked.emplace();
    linear_cpu(params_);
  }

 private:
  LinearParams params_;
};

inline auto linear_workspace_bytes() {
  using Call = std::int64_t (*)(std::int64_t, std::int64_t, std::int64_t, const std::string&,
                                const std::string&, const std::string&, int);
  return static_cast<Call>(&linear_workspace);
}

inline auto linear_init() {
  using O = Linear::Optional;
  return nanobind::init<const Tensor&, const Tensor&, const O&, const O&, const O&, const O&,
                        const Tensor&, const Tensor&, std::int64_t, std::int64_t,
                        const std::string&, const std::string&, const std::string&, int>();
}

}  // namespace vlakern::python
