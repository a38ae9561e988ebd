// A launch of ode_loop on the host: its device code with the warps as threads.
#pragma once

#include "ode_loop/ode_loop_sm80.cuh"
#include "tests/host_warp.h"

namespace vlakern::tests {

template <int kRowTiles, int kHeadDim>
void ode_loop_run(const HostGrid& grid, const OdeLoopParams& p, int ring_slots) {
  run_grid(grid,
           [&](HostWarp& w) { OdeLoop<HostWarp, kRowTiles, kHeadDim>(w, p, ring_slots).run(); });
}

template <int kHeadDim>
void ode_loop_run_rows(const HostGrid& grid, const OdeLoopParams& p, const OdeLoopPlan& plan) {
  if (plan.row_tiles == 1) return ode_loop_run<1, kHeadDim>(grid, p, plan.ring_slots);
  ode_loop_run<4, kHeadDim>(grid, p, plan.ring_slots);
}

// On a machine with so many multiprocessors, and so many bytes of shared memory in each.
inline void ode_loop_host(const OdeLoopParams& p, int blocks, int shared, unsigned seed,
                          Mistake mistake = Mistake::kNone) {
  const OdeLoopPlan plan = ode_loop_plan(p, blocks, shared);
  const HostGrid grid{plan.blocks, kOdeLoopWarps, static_cast<std::size_t>(plan.shared), seed,
                      mistake};
  if (p.head_dim == 64) ode_loop_run_rows<64>(grid, p, plan);
  if (p.head_dim == 128) ode_loop_run_rows<128>(grid, p, plan);
  if (p.head_dim == 256) ode_loop_run_rows<256>(grid, p, plan);
}

}  // namespace vlakern::tests
