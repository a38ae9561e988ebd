// linear as phases of a larger job: its workers are awake already, and no thread is woken per op.
//
//   LinearJob up = linear_job(up_params), down = linear_job(down_params);  // plain data, kept
//   LinearPhases up_phases, down_phases;                                   // one for each use
//   ...
//   up_phases.reset(up), down_phases.reset(down);  // before each job, by the thread that starts it
//   parallel_workers(threads, [&](int worker) {    // threads at most those of the params
//     linear_run(up, up_phases, worker);           // all is done when it returns
//     linear_run(down, down_phases, worker);       // may share the workspace of up
//   });
//
// Who has a scheme of its own for sharing work calls linear_unit for every unit of a phase, in any
// order and from any worker, and begins the next phase when all are done.
#pragma once

#include <cstdint>

#include "common/thread_pool.h"
#include "linear/linear.h"
#include "linear/linear_plan.h"

namespace vlakern {

// Scales of int8's rows; x rearranged (both are empty where x is packed); the product.
constexpr int kLinearPhases = 3;

struct LinearJob {
  LinearParams p;
  LinearPlan plan;
  char* x;              // packed
  float* scale;         // int8: [M] largest magnitude / 127
  float* inverse;       // int8: [M] 127 / largest magnitude
  std::int32_t* start;  // int8: [M]
  char* tiles;          // [threads] worker_tiles
};

// Allocates nothing; valid while the memory that `p` points to stays in place. The memory behind
// x, residual, row_scale and out may change from run to run; another M needs another job.
LinearJob linear_job(const LinearParams& p);

std::int64_t linear_units(const LinearJob& job, int phase);

// `worker` is below the threads of the params, and no other worker uses that number meanwhile.
// `next`: the unit of this phase that it does next, brought near meanwhile; -1 if unknown or none.
void linear_unit(const LinearJob& job, int phase, std::int64_t unit, int worker,
                 std::int64_t next = -1);

struct LinearPhases {
  Phase phases[kLinearPhases];

  void reset(const LinearJob& job) {
    for (int i = 0; i < kLinearPhases; ++i) phases[i].reset(linear_units(job, i));
  }
};

inline void linear_run(const LinearJob& job, LinearPhases& phases, int worker) {
  for (int i = 0; i < kLinearPhases; ++i) {
    phases.phases[i].run_ahead(
        [&](std::int64_t unit, std::int64_t next) { linear_unit(job, i, unit, worker, next); });
  }
}

}  // namespace vlakern
