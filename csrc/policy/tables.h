// What depends on positions and flow time alone, computed once in double.
#pragma once

#include <vector>

#include "policy/config.h"

namespace vlakern {

struct Angles {
  std::vector<float> cos, sin;  // [positions, head_dim / 2]
};

// Rotary position embedding (arXiv 2104.09864).
Angles position_angles(const ModelConfig& model, std::int64_t positions);

// Flow time of each of the solver's evaluations, and 1 as the last.
std::vector<float> evaluation_times(const ModelSizes& sizes);

// Sines, then cosines, of a time's angles: [width].
std::vector<float> time_embedding(float tau, std::int64_t width, const TimeRule& rule);

}  // namespace vlakern
