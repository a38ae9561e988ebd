// The Python face of qkv_prep: a checked call on fixed memory, and the backward call.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "common/tensor_caster.h"
#include "qkv_prep/qkv_prep.h"

namespace vlakern::python {

using QkvMaybe = std::optional<Tensor>;
using QkvExpertTuple = std::tuple<Tensor, Tensor, Tensor, Tensor, QkvMaybe, QkvMaybe>;
using QkvGradientTuple = std::tuple<Tensor, Tensor, Tensor, Tensor, QkvMaybe, QkvMaybe, Tensor>;

inline std::vector<QkvExpertTensors> qkv_experts(const std::vector<QkvExpertTuple>& given) {
  std::vector<QkvExpertTensors> experts;
  for (const auto& [q, k, v, rows, q_weight, k_weight] : given) {
    experts.push_back({q, k, v, rows, q_weight, k_weight});
  }
  return experts;
}

class QkvPrep {
 public:
  QkvPrep(const std::vector<QkvExpertTuple>& experts, const std::vector<Tensor>& q_outs,
          const Tensor& cos, const Tensor& sin, const Tensor& k_out, const Tensor& v_out,
          std::int64_t row_offset, float eps, bool plus_one, const std::string& isa, int threads)
      : params_(qkv_prep_params({qkv_experts(experts), q_outs, cos, sin, k_out, v_out}, row_offset,
                                eps, plus_one)),
        isa_(select_isa(isa)),
        threads_(threads) {}

  void check_permutation() const { vlakern::check_permutation(params_); }

  // Getting Python's lock back may take 5 ms, so only long calls release it.
  void run() const {
    std::optional<nanobind::gil_scoped_release> unlocked;
    const std::int64_t width = (params_.heads + 2 * params_.groups) * 2 * params_.half;
    if (params_.tokens * width > kLargestLocked) unlocked.emplace();
    qkv_prep_cpu(params_, isa_, threads_);
  }

 private:
  static constexpr std::int64_t kLargestLocked = 1 << 18;  // elements, some 50 us
  QkvPrepParams params_;
  Isa isa_;
  int threads_;
};

// `given` is dq of every expert and then what is to be filled.
inline void qkv_prep_backward(const std::vector<QkvExpertTuple>& experts,
                              const std::vector<QkvGradientTuple>& given, const Tensor& cos,
                              const Tensor& sin, const Tensor& dk, const Tensor& dv,
                              const QkvMaybe& dcos, const QkvMaybe& dsin, float eps, bool plus_one,
                              const std::string& isa, int threads) {
  QkvPrepTensors t{qkv_experts(experts), {}, cos, sin, dk, dv};
  std::vector<QkvGradientTensors> found;
  for (const auto& [dq, to_q, to_k, to_v, to_q_weight, to_k_weight, partial] : given) {
    t.q_outs.push_back(dq);
    found.push_back({to_q, to_k, to_v, to_q_weight, to_k_weight, partial});
  }
  const QkvPrepGradientParams params =
      qkv_prep_gradient_params(t, found, dcos, dsin, eps, plus_one);
  qkv_prep_backward_cpu(params, select_isa(isa), threads);
}

}  // namespace vlakern::python
