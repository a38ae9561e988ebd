// The Python face of action_embed: a checked call on fixed memory, to be made again and again.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <optional>

#include "action_embed/action_embed.h"
#include "gated_mlp/gated_mlp_python.h"

namespace vlakern::python {

inline PackedTensors packed_tensors(const Packed& w) {
  return {std::get<0>(w), std::get<1>(w), std::get<2>(w),
          std::get<3>(w), std::get<4>(w), std::get<5>(w)};
}

inline std::optional<PackedTensors> packed_tensors(const std::optional<Packed>& w) {
  if (!w) return {};
  return packed_tensors(*w);
}

class ActionEmbed {
 public:
  using Optional = std::optional<Tensor>;

  ActionEmbed(const Tensor& x, const Packed& first, const Optional& time,
              const std::optional<Packed>& last, const Optional& hidden, const Tensor& y,
              const Tensor& workspace, const std::string& isa, int threads)
      : params_(action_embed_params(
            {x, packed_tensors(first), time, packed_tensors(last), hidden, y, workspace}, isa,
            threads)) {}

  void run() const {
    std::optional<nanobind::gil_scoped_release> unlocked;
    const LinearParams& p = params_.last ? *params_.last : params_.first;
    if (p.m * p.n * p.k > kLongestLocked) unlocked.emplace();
    action_embed_cpu(params_);
  }

 private:
  ActionEmbedParams params_;
};

inline auto action_embed_init() {
  using O = ActionEmbed::Optional;
  return nanobind::init<const Tensor&, const Packed&, const O&, const std::optional<Packed>&,
                        const O&, const Tensor&, const Tensor&, const std::string&, int>();
}

}  // namespace vlakern::python
