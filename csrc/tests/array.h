// Tensors for tests without Python, in memory that shows every step beyond it.
#pragma once

#include <cstdint>
#include <vector>

#include "common/number.h"
#include "common/tensor.h"

namespace vlakern::tests {

// Exactly as long as its last element needs, so that a sanitizer sees every step beyond.
struct Array {
  std::vector<unsigned char> bytes;
  Tensor view;

  Array() = default;
  Array(DType dtype, std::vector<std::int64_t> shape, std::vector<std::int64_t> stride) {
    view.dtype = dtype;
    view.rank = static_cast<int>(shape.size());
    std::int64_t last = 0, count = 1;
    for (int i = 0; i < view.rank; ++i) {
      view.shape[i] = shape[static_cast<std::size_t>(i)];
      view.stride[i] = stride[static_cast<std::size_t>(i)];
      last += (view.shape[i] - 1) * view.stride[i];
      count *= view.shape[i];
    }
    const std::int64_t elements = count > 0 ? last + 1 : 1;
    bytes.assign(static_cast<std::size_t>(elements * dtype_size(dtype)), 0xff);  // NaN
    view.data = reinterpret_cast<std::uintptr_t>(bytes.data());
  }

  std::int64_t elements() const {
    return static_cast<std::int64_t>(bytes.size()) / dtype_size(view.dtype);
  }
  float get(std::int64_t i) const {
    switch (view.dtype) {
      case DType::kBF16:
        return to_float(reinterpret_cast<const bf16*>(bytes.data())[i]);
      case DType::kF16:
        return to_float(reinterpret_cast<const f16*>(bytes.data())[i]);
      default:
        return reinterpret_cast<const float*>(bytes.data())[i];
    }
  }
  void set(std::int64_t i, float value) {
    if (view.dtype == DType::kBF16) {
      reinterpret_cast<bf16*>(bytes.data())[i] = from_float<bf16>(value);
    } else if (view.dtype == DType::kF16) {
      reinterpret_cast<f16*>(bytes.data())[i] = from_float<f16>(value);
    } else {
      reinterpret_cast<float*>(bytes.data())[i] = value;
    }
  }
};

}  // namespace vlakern::tests
