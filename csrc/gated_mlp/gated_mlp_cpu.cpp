#include "gated_mlp/gated_mlp.h"

namespace vlakern {

void gated_mlp_cpu(const GatedMlpParams& p) {
  linear_cpu(p.gate_up);
  linear_cpu(p.down);
}

}  // namespace vlakern
