// Weights rounded or quantised and rearranged for `linear`, see linear/linear.h; to the bit what
// vlakern/ops/linear/packed.py makes of them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gated_mlp/gated_mlp.h"
#include "policy/bytes.h"

namespace vlakern {

// Weight rows [n, k].
struct Rows2D {
  std::vector<float> values;
  std::int64_t n, k;

  float* row(std::int64_t i) { return values.data() + i * k; }
  const float* row(std::int64_t i) const { return values.data() + i * k; }
};

struct PackedMatrix {
  Block memory;
  PackedTensors tensors;  // views of it
};

// `bias` has n numbers, or none. With `gate` the first half of the rows is a gate's.
PackedMatrix pack_matrix(const Rows2D& weight, LinearKind kind, const std::vector<float>& bias,
                         bool gate, int threads);

}  // namespace vlakern
