#include <algorithm>
#include <tuple>
#include <vector>

#include "common/error.h"
#include "shared_attention/shared_attention_tasks.h"

namespace vlakern {
namespace {

constexpr std::int64_t kTasksPerThread = 4;

constexpr const char* kNoPackedForm =
    "shared_attention: a packed prefix needs bf16, a head dim of at most 256 and AVX-512-BF16; "
    "leave it out";

// Lists of work stay a thread's own for its next call, which then allocates nothing.

// A row's result does not depend on its tile, so tiles may be as small as the threads need.
const std::vector<AttentionTile>& make_tiles(const SharedAttentionParams& p, int threads) {
  std::int64_t units = kAttentionTile / kAttentionUnit, count = 0;
  for (;; units /= 2) {
    count = 0;
    for (std::int64_t r = 0; r < p.documents; ++r) count += tile_count(query_rows(p, r), units);
    if (threads == 1 || units <= 2 || count * p.groups >= threads * kTasksPerThread) break;
  }
  thread_local std::vector<AttentionTile> tiles;
  tiles.clear();
  tiles.reserve(static_cast<std::size_t>(count * p.groups));
  for (std::int64_t r = 0; r < p.documents; ++r) {
    const std::int64_t rows = query_rows(p, r), parts = tile_count(rows, units);
    for (std::int64_t g = 0; g < p.groups; ++g) {
      for (std::int64_t t = 0; t < parts; ++t) tiles.push_back(tile_of(r, g, rows, t, parts));
    }
  }
  return tiles;
}

// Every document and group gets the same number of units: as few as memory allows, but so many
// that the threads' shares are even.
const std::vector<AttentionUnit>& make_units(const SharedAttentionParams& p, int threads) {
  thread_local std::vector<AttentionUnit> units;
  units.clear();
  for (std::int64_t r = 0; r < p.documents; ++r) {
    const std::int64_t tiles = (query_rows(p, r) + kTileRows - 1) / kTileRows;
    const std::int64_t pairs = p.documents * p.groups;
    std::int64_t parts = (tiles + kUnitTiles - 1) / kUnitTiles;
    while (parts < tiles && pairs * parts < threads * kTasksPerThread &&
           pairs * parts % threads != 0) {
      ++parts;
    }
    for (std::int64_t g = 0; g < p.groups; ++g) {
      for (std::int64_t i = 0; i < parts; ++i) {
        units.push_back({r, g, tiles * i / parts, tiles * (i + 1) / parts, tiles});
      }
    }
  }
  // The longest first, so that threads end together.
  std::sort(units.begin(), units.end(), [](const AttentionUnit& a, const AttentionUnit& b) {
    return std::tuple(b.end - b.begin, a.document, a.group, a.begin) <
           std::tuple(a.end - a.begin, b.document, b.group, b.begin);
  });
  return units;
}

bool packs(const AttentionKernels& kernels, const SharedAttentionParams& p) {
  return kernels.unit != nullptr && p.width <= kPackedWidth && p.width % 8 == 0;
}

const std::vector<std::int64_t>& whole_panels(const SharedAttentionParams& p) {
  thread_local std::vector<std::int64_t> before;
  before.assign(static_cast<std::size_t>(p.prefixes + 1), 0);
  for (std::size_t n = 0; n + 1 < before.size(); ++n) {
    before[n + 1] = before[n] + (p.cu_prefix[n + 1] - p.cu_prefix[n]) / kPanel;
  }
  return before;
}

}  // namespace

AttentionKernels choose_kernels(Isa isa, DType dtype) {
  switch (isa) {
#if defined(VLAKERN_HAS_AVX512_BF16)
    case Isa::kAvx512Bf16:
      return shared_attention_avx512bf16(dtype);
#endif
#if defined(VLAKERN_HAS_AVX512)
    case Isa::kAvx512:
      return shared_attention_avx512(dtype);
#endif
#if defined(VLAKERN_HAS_AVX2)
    case Isa::kAvx2:
      return shared_attention_avx2(dtype);
#endif
#if defined(VLAKERN_HAS_NEON)
    case Isa::kNeon:
      return shared_attention_neon(dtype);
#endif
    default:
      return shared_attention_scalar(dtype);
  }
}

void shared_attention_cpu(const SharedAttentionTensors& t, float scale, const std::string& isa,
                          int threads) {
  SharedAttentionParams p = shared_attention_params(t, scale);
  const AttentionKernels kernels = choose_kernels(select_isa(isa), p.dtype);
  const int used = choose_threads(p, threads);
  if (packs(kernels, p)) {
    const std::vector<std::int64_t>& panels = whole_panels(p);
    p.packed_panels = panels.data();
    const std::vector<AttentionUnit>& units = make_units(p, used);
    const std::int64_t floats = attention_unit_scratch(p.width);
    const auto count = static_cast<std::int64_t>(units.size());
    return run_tasks(used, count, [&](std::int64_t i) {
      const AttentionUnit* unit = units.data() + i;
      kernels.unit(p, *unit, i + used < count ? unit + used : nullptr, scratch(floats));
    });
  }
  if (p.packed != nullptr) throw InputError(kNoPackedForm);
  const std::vector<AttentionTile>& tiles = make_tiles(p, used);
  const std::int64_t floats = attention_forward_scratch(p.width);
  run_tasks(used, static_cast<std::int64_t>(tiles.size()), [&](std::int64_t i) {
    kernels.forward(p, tiles[static_cast<std::size_t>(i)], scratch(floats));
  });
}

std::pair<bool, std::int64_t> shared_attention_prefix_bytes(const Tensor& prefix_k,
                                                            const Tensor& cu_prefix,
                                                            const std::string& isa) {
  const SharedAttentionParams p =
      shared_attention_prefix_params(prefix_k, prefix_k, cu_prefix, nullptr);
  if (!packs(choose_kernels(select_isa(isa), p.dtype), p)) return {false, 0};
  return {true, packed_bytes(whole_panels(p).back(), p.groups, p.width)};
}

void shared_attention_pack_prefix(const Tensor& prefix_k, const Tensor& prefix_v,
                                  const Tensor& cu_prefix, const Tensor& packed,
                                  const std::string& isa, int threads) {
  SharedAttentionParams p = shared_attention_prefix_params(prefix_k, prefix_v, cu_prefix, &packed);
  const AttentionKernels kernels = choose_kernels(select_isa(isa), p.dtype);
  if (!packs(kernels, p)) throw InputError(kNoPackedForm);
  const std::vector<std::int64_t>& panels = whole_panels(p);
  p.packed_panels = panels.data();
  run_tasks(threads > 0 ? threads : default_threads(), p.prefixes * p.groups,
            [&](std::int64_t i) { kernels.pack(p, i / p.groups, i % p.groups); });
}

}  // namespace vlakern
