// How a product is cut into blocks: a pure function of its sizes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "linear/linear.h"
#include "linear/linear_tile.h"

namespace vlakern {

struct LinearPlan {
  LinearKernels kernels;
  int threads;                // worth waking
  int panels;                 // that a tile spans: 1 or 2
  std::int64_t blocks;        // of rows, each of at most a tile's rows, as equal as can be
  std::int64_t groups;        // of blocks whose x shares a core's cache; each reads all weights
  std::int64_t chunks;        // of pairs; one and a group are what a worker takes at a time
  std::int64_t long_chunks;   // the first ones
  std::int64_t long_chunk;    // pairs of a long chunk
  std::int64_t short_chunk;   // pairs of all others but the last
  std::int64_t chain;         // steps of K that are added up in one go
  std::int64_t slab;          // steps of K that are worked on together
  std::int64_t scales;        // workspace: offset of [3, M] scale, inverse and start of int8
  std::int64_t tiles;         // workspace: offset of the workers' tiles
  std::int64_t worker_tiles;  // bytes of tiles of one worker
  std::int64_t bytes;         // of workspace, at least 1
};

inline std::int64_t block_row(const LinearParams& p, const LinearPlan& plan, std::int64_t block) {
  return p.m * block / plan.blocks;
}

inline std::int64_t group_block(const LinearPlan& plan, std::int64_t group) {
  return plan.blocks * group / plan.groups;
}

// Long chunks first, since memory is read best in order, then short ones, so that all end together.
inline std::int64_t chunk_pair(const LinearParams& p, const LinearPlan& plan, std::int64_t chunk) {
  const std::int64_t most = std::min(chunk, plan.long_chunks) * plan.long_chunk;
  return std::min(p.pairs,
                  most + std::max<std::int64_t>(0, chunk - plan.long_chunks) * plan.short_chunk);
}

// Only the sizes, kind, activation, isa and threads of `p` matter to the cuts.
LinearPlan linear_plan(const LinearParams& p);

}  // namespace vlakern
