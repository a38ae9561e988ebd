#include "action_unembed/action_unembed.h"
#include "common/error.h"

namespace vlakern {
namespace {

LinearParams pass(const Tensor& x, const PackedTensors& w, const Tensor& out,
                  const Tensor& workspace, const char* activation, const std::string& isa,
                  int threads) {
  const LinearTensors t{x, w.panels, w.w_scale, w.bias, {}, {}, out, workspace};
  return linear_params(t, w.n, w.k, w.kind, activation, isa, threads);
}

}  // namespace

ActionUnembedParams action_unembed_params(const ActionUnembedTensors& t, const std::string& kind,
                                          float eps, const std::string& isa, int threads) {
  if (t.first.has_value() != t.hidden.has_value() || t.norm.has_value() != t.normed.has_value()) {
    throw InputError("action_unembed: a pass and the memory of its result come together");
  }
  std::optional<NormParams> norm;
  if (t.norm) norm = norm_params(*t.norm, kind, eps);
  const Tensor& h = t.norm ? *t.normed : t.h;
  if (!t.first) return {norm, {}, pass(h, t.last, t.y, t.workspace, "none", isa, threads)};
  return {norm, pass(h, *t.first, *t.hidden, t.workspace, "relu", isa, threads),
          pass(*t.hidden, t.last, t.y, t.workspace, "none", isa, threads)};
}

}  // namespace vlakern
