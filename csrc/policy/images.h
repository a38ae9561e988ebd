// Camera images to the pixels that a vision tower sees, by a policy's own rule: the tables of
// `image_prep`, as vlakern/ops/image_prep/reference.py defines them.
#pragma once

#include <cstdint>
#include <string>

#include "common/tensor.h"
#include "policy/bytes.h"
#include "policy/config.h"

namespace vlakern {

// uint8 RGB of `height` rows, `stride` bytes apart, into `out` [1, rows, 3 patch patch].
void prepare_image(const std::uint8_t* pixels, std::int64_t height, std::int64_t width,
                   std::int64_t stride, const Processing& rule, std::int64_t side,
                   std::int64_t patch, const Tensor& out, int threads);

}  // namespace vlakern
