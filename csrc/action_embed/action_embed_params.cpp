#include "action_embed/action_embed.h"
#include "common/error.h"

namespace vlakern {
namespace {

LinearParams pass(const Tensor& x, const PackedTensors& w, const std::optional<Tensor>& residual,
                  const Tensor& out, const Tensor& workspace, const char* activation,
                  const std::string& isa, int threads) {
  const LinearTensors t{x, w.panels, w.w_scale, w.bias, residual, {}, out, workspace};
  return linear_params(t, w.n, w.k, w.kind, activation, isa, threads);
}

}  // namespace

ActionEmbedParams action_embed_params(const ActionEmbedTensors& t, const std::string& isa,
                                      int threads) {
  if (t.last.has_value() != t.hidden.has_value()) {
    throw InputError("action_embed: the last weights and hidden must be given together");
  }
  const bool rows = t.time.has_value();
  if (!t.last) {
    return {pass(t.x, t.first, t.time, t.y, t.workspace, "none", isa, threads), {}, false};
  }
  if (rows && t.hidden->dtype != DType::kF32) {
    throw InputError("action_embed: hidden must be float32 where each row has its time");
  }
  const char* activation = rows ? "none" : "silu";
  return {pass(t.x, t.first, t.time, *t.hidden, t.workspace, activation, isa, threads),
          pass(*t.hidden, *t.last, {}, t.y, t.workspace, "none", isa, threads), rows};
}

}  // namespace vlakern
