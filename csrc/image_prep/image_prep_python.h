// The Python face of image_prep: a checked call on fixed memory, to be made again and again.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>

#include "common/error.h"
#include "common/tensor_caster.h"
#include "image_prep/image_prep.h"

namespace vlakern::python {

class ImagePrep {
 public:
  using Place = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
  using Norm = std::tuple<float, float, float, float, float, float, float>;
  using Level = std::tuple<std::uint8_t, std::uint8_t, std::uint8_t>;

  // `place` is the resized image's top and left and the output's height and width; `norm` is
  // divisor, means and standard deviations.
  ImagePrep(const Tensor& images, const Tensor& y_first, const Tensor& y_weights,
            const Tensor& x_first, const Tensor& x_weights, const Place& place, const Norm& norm,
            const Level& pad, std::int64_t patch, const Tensor& out, const std::string& isa,
            int threads) {
    const auto [top, left, height, width] = place;
    const auto [divisor, mean0, mean1, mean2, std0, std1, std2] = norm;
    const auto [pad0, pad1, pad2] = pad;
    const ImagePrepSettings settings{top,
                                     left,
                                     height,
                                     width,
                                     patch,
                                     {divisor, {mean0, mean1, mean2}, {std0, std1, std2}},
                                     {pad0, pad1, pad2}};
    params_ = image_prep_params({images, y_first, y_weights, x_first, x_weights, out}, settings,
                                isa, threads);
  }

  std::int64_t workspace_bytes() const { return image_prep_workspace(params_); }

  void use(const Tensor& workspace) {
    if (workspace.rank != 1 || workspace.dtype != DType::kU8 || workspace.stride[0] != 1 ||
        workspace.shape[0] < workspace_bytes()) {
      throw InputError("image_prep: workspace must be adjacent bytes, at least workspace_bytes");
    }
    params_.workspace = reinterpret_cast<std::uint8_t*>(workspace.data);
  }

  void run() const {
    if (params_.workspace == nullptr) throw InputError("image_prep: no workspace was given");
    const nanobind::gil_scoped_release unlocked;
    image_prep_cpu(params_);
  }

 private:
  ImagePrepParams params_{};
};

}  // namespace vlakern::python
