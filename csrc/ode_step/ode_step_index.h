// How the CUDA kernel maps threads to elements: pure functions, run by the device, tested on the
// host.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "ode_step/ode_step.h"

namespace vlakern {

// One thread updates `run` adjacent slots of one position of one row.
struct OdeStepPlace {
  std::int64_t b;
  std::int64_t h;
  std::int64_t a;  // first slot
};

VLAKERN_HOST_DEVICE OdeStepPlace ode_step_place(std::int64_t thread, std::int64_t positions,
                                                std::int64_t runs_per_position, int run) {
  const std::int64_t position = thread / runs_per_position;
  return {position / positions, position % positions, thread % runs_per_position * run};
}

VLAKERN_HOST_DEVICE std::int64_t ode_step_offset(const std::int64_t (&stride)[3],
                                                 const OdeStepPlace& at) {
  return at.b * stride[0] + at.h * stride[1] + at.a * stride[2];
}

struct OdeStepLaunch {
  int run;                         // slots per thread: 4 or 1
  int block;                       // threads per block
  std::int64_t grid;               // blocks
  std::int64_t runs_per_position;  // ceil(A / run), at least 1: tau is written even without slots
  std::int64_t threads;            // that have work
};

constexpr int kOdeStepBlock = 256;

inline bool ode_step_allows_run(const void* base, const std::int64_t (&stride)[3],
                                std::int64_t slots, int size) {
  constexpr int kRun = 4;
  return base == nullptr ||
         (slots % kRun == 0 && stride[2] == 1 && stride[0] % kRun == 0 && stride[1] % kRun == 0 &&
          reinterpret_cast<std::uintptr_t>(base) % (kRun * size) == 0);
}

inline OdeStepLaunch ode_step_launch(const OdeStepParams& p) {
  const int x_size = dtype_size(p.x_dtype);
  const int v_size = dtype_size(p.v_dtype);
  const bool wide = ode_step_allows_run(p.x, p.x_stride, p.slots, x_size) &&
                    ode_step_allows_run(p.v, p.v_stride, p.slots, v_size) &&
                    ode_step_allows_run(p.v0, p.v0_stride, p.slots, v_size) &&
                    ode_step_allows_run(p.frozen, p.frozen_stride, p.slots, x_size) &&
                    ode_step_allows_run(p.x_out, p.x_out_stride, p.slots, x_size);
  OdeStepLaunch launch{};
  launch.run = wide ? 4 : 1;
  launch.block = kOdeStepBlock;
  launch.runs_per_position = p.slots > launch.run ? (p.slots + launch.run - 1) / launch.run : 1;
  launch.threads = p.rows * p.positions * launch.runs_per_position;
  launch.grid = (launch.threads + launch.block - 1) / launch.block;
  return launch;
}

}  // namespace vlakern
