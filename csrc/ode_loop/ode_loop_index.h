// How ode_loop's blocks and warps share the work: pure functions, run by the device, tested on the
// host.
#pragma once

#include <cstdint>

#include "common/warp.h"
#include "ode_loop/ode_loop.h"

namespace vlakern {

constexpr int kOdeLoopStages = 8;  // of copies in flight, at most: what CudaWarp::wait knows
constexpr int kOdeLoopStep = 32;   // k of one stage: 16 bytes of each lane
constexpr int kOdeLoopSlot = 512;  // bytes: 16 of each lane
constexpr int kOdeLoopTiles = 8;   // accumulators of a warp: row tiles times column tiles
constexpr int kOdeLoopSplits = 8;  // of the keys of an attention, at most
constexpr int kOdeLoopPad = 64;    // bytes between rows of queries, which then share no banks

// The sums of all warps, then their parts of the rows' squares, then the ring.
constexpr int kOdeLoopSumsBytes = kOdeLoopWarps * kOdeLoopTiles * kOdeLoopSlot;
constexpr int kOdeLoopSquaresBytes = kOdeLoopWarps * kOdeLoopRows * 4;
constexpr int kOdeLoopFixedBytes = kOdeLoopSumsBytes + kOdeLoopSquaresBytes;

VLAKERN_HOST_DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }
VLAKERN_HOST_DEVICE int round_up(int a, int b) { return ceil_div(a, b) * b; }
VLAKERN_HOST_DEVICE int least(int a, int b) { return a < b ? a : b; }
VLAKERN_HOST_DEVICE int most(int a, int b) { return a > b ? a : b; }

// out[row, column] = sum over k of a[row, k] w[column, k].
struct OdeLoopProduct {
  const std::uint16_t* a;  // [rows, k]
  const std::uint16_t* w;  // [columns, k], twice as many rows with a gate
  int k;                   // a multiple of 16
  int columns;
  bool gated;   // rows `columns` and on are the second of each pair
  bool normed;  // sums are divided by the root mean square of a's row
};

// Eight columns are a unit; with a gate, eight of each half.
VLAKERN_HOST_DEVICE int ode_loop_columns(const OdeLoopProduct& p) { return ceil_div(p.columns, 8); }

// The units of a block are a range; all ranges are of one length, or of one more.
VLAKERN_HOST_DEVICE int ode_loop_first_unit(int units, int block, int blocks) {
  return static_cast<int>(std::int64_t{units} * block / blocks);
}

// What a block multiplies at a time.
struct OdeLoopGroup {
  int first;  // unit
  int units;  // 0: nothing
  int tiles;  // of eight rows of w
  int depth;  // stages of copies
};

VLAKERN_HOST_DEVICE OdeLoopGroup ode_loop_group(const OdeLoopProduct& p, int row_tiles, int index,
                                                int block, int blocks, int ring_slots) {
  const int units = ode_loop_columns(p), each = p.gated ? 2 : 1;
  const int size = kOdeLoopTiles / row_tiles / each;
  const int begin = ode_loop_first_unit(units, block, blocks) + index * size;
  const int end = ode_loop_first_unit(units, block + 1, blocks);
  OdeLoopGroup group{};
  group.first = begin;
  group.units = most(0, least(size, end - begin));
  group.tiles = group.units * each;
  group.depth = least(kOdeLoopStages, ring_slots / (2 * row_tiles + group.tiles));
  return group;
}

// The row of w that is row j of a tile, -1 where there is none.
VLAKERN_HOST_DEVICE int ode_loop_weight_row(const OdeLoopProduct& p, int first, int tile, int j) {
  const int unit = first + (p.gated ? tile / 2 : tile);
  const int column = unit * 8 + j;
  if (column >= p.columns) return -1;
  return p.gated && tile % 2 != 0 ? p.columns + column : column;
}

// A warp takes every eighth step of k.
VLAKERN_HOST_DEVICE int ode_loop_steps(int k, int warp) {
  const int steps = ceil_div(k, kOdeLoopStep);
  return ceil_div(most(0, steps - warp), kOdeLoopWarps);
}
VLAKERN_HOST_DEVICE int ode_loop_k(int warp, int step, int lane) {
  return (warp + kOdeLoopWarps * step) * kOdeLoopStep + column_of(lane) * 8;
}

// A unit of attention: up to 16 queries of one chunk and head.
struct OdeLoopQueries {
  int chunk;
  int head;
  int first;  // position
};

VLAKERN_HOST_DEVICE int ode_loop_units(const OdeLoopParams& p) {
  return p.chunks * p.heads * ceil_div(p.chunk, 16);
}
VLAKERN_HOST_DEVICE OdeLoopQueries ode_loop_queries(const OdeLoopParams& p, int unit) {
  const int tiles = ceil_div(p.chunk, 16);
  return {unit / tiles / p.heads, unit / tiles % p.heads, unit % tiles * 16};
}

// Bytes of one row of queries or keys in shared memory, and of all that an attention keeps there:
// 16 queries, a chunk's own keys, and each warp's maximum and sum of every row.
VLAKERN_HOST_DEVICE int ode_loop_row_bytes(int head_dim) { return 2 * head_dim + kOdeLoopPad; }
VLAKERN_HOST_DEVICE int ode_loop_attention_bytes(int chunk, int head_dim) {
  return (16 + chunk) * ode_loop_row_bytes(head_dim) + 2 * kOdeLoopWarps * 16 * 4;
}

}  // namespace vlakern
