// Keys and values of one key-value head in the order in which the tiles of queries read them.
#pragma once

#include <cstdint>

#include "shared_attention/shared_attention.h"

namespace vlakern {

constexpr std::int64_t kPanel = 32;         // keys, or columns of values, side by side
constexpr std::int64_t kPanelStep = 128;    // bytes: kPanel words of two bf16
constexpr std::int64_t kBlockPanels = 8;    // most panels between two corrections of the maximum
constexpr std::int64_t kTileRows = 14;      // most query rows of a tile; what registers hold
constexpr std::int64_t kUnitTiles = 32;     // most tiles of a unit; their sums stay in a near cache
constexpr std::int64_t kPackedWidth = 256;  // the widest head

// Some tiles of one document's part of one key-value head. The part's rows n = i * (H / G) + h are
// cut into `tiles` tiles, as even as can be, whatever the unit and the number of threads are.
struct AttentionUnit {
  std::int64_t document;
  std::int64_t group;
  std::int64_t begin;  // of tiles
  std::int64_t end;
  std::int64_t tiles;
};

// [panels][D / 2] steps of keys: a word is two neighbouring numbers of a key. [column
// panels][panels
// * 16] steps of values: a word is one column of two neighbouring keys. Zeros in padding.
struct PackedKeys {
  char* k;
  char* v;
  std::int64_t v_gap;  // bytes from a column panel to the next
};

inline std::int64_t panels_of(std::int64_t count) { return (count + kPanel - 1) / kPanel; }

// Bytes of one panel of keys and of its part of the values.
inline std::int64_t packed_k_bytes(std::int64_t width) { return width / 2 * kPanelStep; }
inline std::int64_t packed_v_bytes(std::int64_t width) {
  return panels_of(width) * (kPanel / 2) * kPanelStep;
}

inline std::int64_t packed_bytes(std::int64_t panels, std::int64_t groups, std::int64_t width) {
  return panels * groups * (packed_k_bytes(width) + packed_v_bytes(width));
}

// Where a prefix's whole panels of one group are in p.packed; their keys stand before their values.
inline PackedKeys packed_prefix(const SharedAttentionParams& p, std::int64_t prefix,
                                std::int64_t group) {
  const std::int64_t before = p.packed_panels[prefix];
  const std::int64_t panels = p.packed_panels[prefix + 1] - before;
  const std::int64_t k_bytes = packed_k_bytes(p.width), v_bytes = packed_v_bytes(p.width);
  char* k = p.packed + (before * p.groups + panels * group) * (k_bytes + v_bytes);
  return {k, k + panels * k_bytes, panels * (kPanel / 2) * kPanelStep};
}

}  // namespace vlakern
