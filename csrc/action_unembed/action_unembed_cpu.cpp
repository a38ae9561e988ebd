#include "action_unembed/action_unembed.h"

namespace vlakern {

void action_unembed_cpu(const ActionUnembedParams& p) {
  if (p.norm) norm_cpu(*p.norm, p.last.isa, p.last.threads);
  if (p.first) linear_cpu(*p.first);
  linear_cpu(p.last);
}

}  // namespace vlakern
