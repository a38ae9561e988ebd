// How a product is cut into blocks: a pure function of its sizes.
#pragma once

#include <cstdint>

#include "linear/linear.h"
#include "linear/linear_tile.h"

namespace vlakern {

struct LinearPlan {
  LinearKernels kernels;
  int threads;                // worth waking
  int panels;                 // that a tile spans: 1 or 2
  std::int64_t blocks;        // of rows, each of at most a tile's rows, as equal as can be
  std::int64_t group;         // blocks that are worked on together: their x stays in a core's cache
  std::int64_t chunk;         // pairs that a worker takes at a time
  std::int64_t chain;         // steps of K that are added up in one go
  std::int64_t slab;          // steps of K that are worked on together
  std::int64_t packed;        // workspace: bytes of x, packed
  std::int64_t scales;        // workspace: offset of [3, M] scale, inverse and start of int8
  std::int64_t tiles;         // workspace: offset of the workers' tiles
  std::int64_t worker_tiles;  // bytes of tiles of one worker
  std::int64_t bytes;         // of workspace, at least 1
};

inline std::int64_t block_row(const LinearParams& p, const LinearPlan& plan, std::int64_t block) {
  return p.m * block / plan.blocks;
}

// Only the sizes, kind, activation, isa and threads of `p` matter to the cuts.
LinearPlan linear_plan(const LinearParams& p);

}  // namespace vlakern
