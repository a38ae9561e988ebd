#include "common/error.h"
#include "gated_mlp/gated_mlp.h"

namespace vlakern {
namespace {

LinearParams pass(const Tensor& x, const PackedTensors& w, const std::optional<Tensor>& residual,
                  const Tensor& out, const Tensor& workspace, const std::string& activation,
                  const std::string& isa, int threads) {
  const LinearTensors t{x, w.panels, w.w_scale, w.bias, residual, {}, out, workspace};
  return linear_params(t, w.n, w.k, w.kind, activation, isa, threads);
}

}  // namespace

GatedMlpParams gated_mlp_params(const GatedMlpTensors& t, const std::string& activation,
                                const std::string& isa, int threads) {
  if (!is_gated(activation_from_name(activation))) {
    throw InputError("gated_mlp: the activation must be a gated one, got " + activation);
  }
  return {pass(t.x, t.gate_up, {}, t.hidden, t.workspace, activation, isa, threads),
          pass(t.hidden, t.down, t.residual, t.out, t.workspace, "none", isa, threads)};
}

}  // namespace vlakern
