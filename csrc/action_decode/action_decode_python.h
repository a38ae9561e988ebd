// The Python face of action_decode: a checked call on fixed memory, to be made again and again.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <optional>

#include "action_decode/action_decode.h"
#include "common/tensor_caster.h"

namespace vlakern::python {

class ActionDecode {
 public:
  ActionDecode(const Tensor& x, const Tensor& scale, const Tensor& offset, const Tensor& base,
               const Tensor& copies, const Tensor& affine, const Tensor& poses, const Tensor& out,
               const std::string& frame)
      : params_(action_decode_params({x, scale, offset, base, copies, affine, poses, out}, frame)) {
  }

  // A chunk takes microseconds and getting the lock back up to 5 ms, so only batches release it.
  void run() const {
    std::optional<nanobind::gil_scoped_release> unlocked;
    if (params_.rows * params_.positions * params_.columns > kLargestLocked) unlocked.emplace();
    action_decode_cpu(params_);
  }

 private:
  static constexpr std::int64_t kLargestLocked = 1 << 16;  // values, some 200 us
  ActionDecodeParams params_;
};

}  // namespace vlakern::python
