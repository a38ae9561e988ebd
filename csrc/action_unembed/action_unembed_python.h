// The Python face of action_unembed: a checked call on fixed memory, to be made again and again.
#pragma once

#include <optional>
#include <tuple>

#include "action_embed/action_embed_python.h"
#include "action_unembed/action_unembed.h"

namespace vlakern::python {

class ActionUnembed {
 public:
  using Optional = std::optional<Tensor>;
  // weight, bias, scale, shift, kind, eps
  using NormFacts = std::tuple<Optional, Optional, Optional, Optional, std::string, float>;

  ActionUnembed(const Tensor& h, const std::optional<NormFacts>& norm, const Optional& normed,
                const std::optional<Packed>& first, const Optional& hidden, const Packed& last,
                const Tensor& y, const Tensor& workspace, const std::string& isa, int threads)
      : params_(action_unembed_params(
            {h, norm_tensors(h, norm, normed), normed, packed_tensors(first), hidden,
             packed_tensors(last), y, workspace},
            norm ? std::get<4>(*norm) : "", norm ? std::get<5>(*norm) : 0.0f, isa, threads)) {}

  void run() const {
    std::optional<nanobind::gil_scoped_release> unlocked;
    const LinearParams& p = params_.first ? *params_.first : params_.last;
    if (p.m * p.n * p.k > kLongestLocked) unlocked.emplace();
    action_unembed_cpu(params_);
  }

 private:
  static std::optional<NormTensors> norm_tensors(const Tensor& h,
                                                 const std::optional<NormFacts>& facts,
                                                 const Optional& normed) {
    if (!facts || !normed) return {};
    const auto& [weight, bias, scale, shift, kind, eps] = *facts;
    return NormTensors{h, weight, bias, scale, shift, {}, {}, {}, *normed, {}};
  }

  ActionUnembedParams params_;
};

inline auto action_unembed_init() {
  using O = ActionUnembed::Optional;
  return nanobind::init<const Tensor&, const std::optional<ActionUnembed::NormFacts>&, const O&,
                        const std::optional<Packed>&, const O&, const Packed&, const Tensor&,
                        const Tensor&, const std::string&, int>();
}

}  // namespace vlakern::python
