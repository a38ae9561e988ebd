// What the driver and the per-ISA kernels of shared_attention agree on.
#pragma once

#include <algorithm>
#include <cstdint>

#include "shared_attention/shared_attention.h"
#include "shared_attention/shared_attention_packed.h"

namespace vlakern {

constexpr std::int64_t kAttentionUnit = 16;   // query rows that are never parted; full vectors
constexpr std::int64_t kAttentionTile = 128;  // most query rows of a tile
constexpr std::int64_t kAttentionGap = 16;    // words between rows of matrices
constexpr std::int64_t kAttentionBlock = 64;  // keys between two corrections of the maximum

// One document's part of one key-value head: rows n = i * (H / G) + h of it, [begin, end).
struct AttentionTile {
  std::int64_t document;
  std::int64_t group;
  std::int64_t begin;
  std::int64_t end;
};

// The documents that add to the same gradients: one prefix with all that continue it, in order, or
// one document that continues none.
struct AttentionChain {
  std::int64_t prefix;           // -1 for none
  const std::int64_t* document;  // [count]
  std::int64_t count;
  std::int64_t group;
};

// Some of a chain's tiles, in its order, which add to sums of their own: of keys, then of values,
// `rows` rows each. The prefix's rows come first, then those of every document that has a tile
// here; each run of rows is followed by kGradientGap rows of padding.
struct AttentionPiece {
  std::int64_t prefix;        // -1 for none
  const AttentionTile* tile;  // [count]
  std::int64_t count;
  float* sums;  // [2][rows][width up to a multiple of 16]
  std::int64_t rows;
};

constexpr std::int64_t kGradientGap = 8;

// Rows of gradients from the pieces that add to them.
struct AttentionSum {
  HeadRows to;
  std::int64_t row, count, group;
  const float* const* from;  // [pieces] sums of the first row
  std::int64_t pieces;
  float factor;
};

struct AttentionKernels {
  void (*forward)(const SharedAttentionParams& p, const AttentionTile& tile, float* scratch);
  void (*backward)(const SharedAttentionParams& p, const AttentionChain& chain, float* scratch);
  void (*piece)(const SharedAttentionParams& p, const AttentionPiece& piece, float* scratch);
  void (*sum)(const SharedAttentionParams& p, const AttentionSum& sum, float* scratch);
  // The faster forward pass of heads up to kPackedWidth wide, or null; what the next unit reads, if
  // there is one, is brought near.
  void (*unit)(const SharedAttentionParams& p, const AttentionUnit& unit, const AttentionUnit* next,
               float* scratch);
  // Packs the whole panels of one prefix and group into p.packed; null where unit is.
  void (*pack)(const SharedAttentionParams& p, std::int64_t prefix, std::int64_t group);
};

inline std::int64_t round_up(std::int64_t value, std::int64_t step) {
  return (value + step - 1) / step * step;
}

// Floats of scratch memory; every piece begins at a cache line.
inline std::int64_t attention_forward_scratch(std::int64_t width) {
  const std::int64_t wide = round_up(width, 16) + kAttentionGap;
  const std::int64_t tile = kAttentionTile + kAttentionGap;
  return tile * (2 * wide + 8) + kAttentionBlock * 2 * (wide + tile) + 64;
}

inline std::int64_t attention_unit_scratch(std::int64_t width) {
  const std::int64_t block = kBlockPanels * (packed_k_bytes(width) + packed_v_bytes(width)) / 4 +
                             panels_of(width) * kPanelStep / 4;
  const std::int64_t sums = kUnitTiles * kTileRows * (round_up(width, 16) + 16);
  return block + sums + kTileRows * (kBlockPanels * kPanel + 16 + 2 * 144) + 128;
}

// `keys` is the most logical keys that a document has.
inline std::int64_t attention_backward_scratch(std::int64_t width, std::int64_t keys) {
  const std::int64_t wide = round_up(width, 16) + kAttentionGap;
  const std::int64_t tile = kAttentionTile + kAttentionGap;
  const std::int64_t rows = round_up(keys + 2 * kAttentionBlock, 16);
  return tile * (5 * wide + 8) + kAttentionBlock * 3 * (wide + tile) + 2 * rows * (wide + tile) +
         64;
}

AttentionKernels shared_attention_avx512bf16(DType dtype);
AttentionKernels shared_attention_avx512(DType dtype);
AttentionKernels shared_attention_avx2(DType dtype);
AttentionKernels shared_attention_neon(DType dtype);
AttentionKernels shared_attention_scalar(DType dtype);

}  // namespace vlakern
