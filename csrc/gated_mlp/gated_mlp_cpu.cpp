#include <algorithm>

#include "gated_mlp/gated_mlp.h"

namespace vlakern {

void gated_mlp_cpu(const GatedMlpParams& p) {
  const GatedMlpJob job = gated_mlp_job(p);
  GatedMlpPhases phases;
  phases.reset(job);
  const int threads = std::max(job.gate_up.plan.threads, job.down.plan.threads);
  parallel_workers(threads, [&](int worker) { gated_mlp_run(job, phases, worker); });
}

}  // namespace vlakern
