#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "common/cpu_features.h"
#include "common/error.h"
#include "common/thread_pool.h"
#include "shared_attention/shared_attention_tile.h"

namespace vlakern {
namespace {

// Below this many multiplications a second thread costs more than it saves.
constexpr std::int64_t kWorkPerThread = 1 << 20;
constexpr std::int64_t kTasksPerThread = 4;

constexpr const char* kNoPackedForm =
    "shared_attention: a packed prefix needs bf16, a head dim of at most 256 and AVX-512-BF16; "
    "leave "
    "it out";

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

// Each thread keeps its scratch memory for the next call.
float* scratch(std::int64_t floats) {
  thread_local std::vector<float> memory;
  const auto needed = static_cast<std::size_t>(floats + 16);
  if (memory.size() < needed) memory.resize(needed);
  void* start = memory.data();
  std::size_t space = memory.size() * sizeof(float);
  return static_cast<float*>(
      std::align(64, static_cast<std::size_t>(floats) * sizeof(float), start, space));
}

std::int64_t document_keys(const SharedAttentionParams& p, std::int64_t r) {
  std::int64_t keys = p.cu_k[r + 1] - p.cu_k[r];
  if (p.prefix_index == nullptr) return keys;
  const std::int32_t* cu = p.cu_prefix + p.prefix_index[r];
  return keys + cu[1] - cu[0];
}

std::int64_t query_rows(const SharedAttentionParams& p, std::int64_t r) {
  return (p.cu_q[r + 1] - p.cu_q[r]) * (p.heads / p.groups);
}

int choose_threads(const SharedAttentionParams& p, int threads) {
  std::int64_t work = 0;
  for (std::int64_t r = 0; r < p.documents; ++r) {
    work += query_rows(p, r) * document_keys(p, r) * p.width * p.groups;
  }
  const int most = threads > 0 ? threads : default_threads();
  return static_cast<int>(std::clamp<std::int64_t>(work / kWorkPerThread, 1, most));
}

// Tiles of a document with `rows` query rows, each of at most `units` units; as even as can be.
std::int64_t tile_count(std::int64_t rows, std::int64_t units) {
  const std::int64_t all = round_up(rows, kAttentionUnit) / kAttentionUnit;
  return (all + units - 1) / units;
}

// A row's result does not depend on its tile, so tiles may be as small as the threads need.
std::vector<AttentionTile> make_tiles(const SharedAttentionParams& p, int threads) {
  std::int64_t units = kAttentionTile / kAttentionUnit, count = 0;
  for (;; units /= 2) {
    count = 0;
    for (std::int64_t r = 0; r < p.documents; ++r) count += tile_count(query_rows(p, r), units);
    if (threads == 1 || units <= 2 || count * p.groups >= threads * kTasksPerThread) break;
  }
  std::vector<AttentionTile> tiles;
  tiles.reserve(static_cast<std::size_t>(count * p.groups));
  for (std::int64_t r = 0; r < p.documents; ++r) {
    const std::int64_t rows = query_rows(p, r), parts = tile_count(rows, units);
    const std::int64_t all = round_up(rows, kAttentionUnit) / kAttentionUnit;
    for (std::int64_t g = 0; g < p.groups; ++g) {
      for (std::int64_t t = 0; t < parts; ++t) {
        const std::int64_t begin = all * t / parts * kAttentionUnit;
        const std::int64_t end = std::min(rows, all * (t + 1) / parts * kAttentionUnit);
        tiles.push_back({r, g, begin, end});
      }
    }
  }
  return tiles;
}

// Every document and group gets the same number of units: as few as memory allows, but so many
// that the threads' shares are even.
std::vector<AttentionUnit> make_units(const SharedAttentionParams& p, int threads) {
  std::vector<AttentionUnit> units;
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
  std::stable_sort(units.begin(), units.end(), [](const AttentionUnit& a, const AttentionUnit& b) {
    return a.end - a.begin > b.end - b.begin;
  });
  return units;
}

bool packs(const AttentionKernels& kernels, const SharedAttentionParams& p) {
  return kernels.unit != nullptr && p.width <= kPackedWidth && p.width % 8 == 0;
}

std::vector<std::int64_t> whole_panels(const SharedAttentionParams& p) {
  std::vector<std::int64_t> before(static_cast<std::size_t>(p.prefixes + 1));
  for (std::size_t n = 0; n + 1 < before.size(); ++n) {
    before[n + 1] = before[n] + (p.cu_prefix[n + 1] - p.cu_prefix[n]) / kPanel;
  }
  return before;
}

struct Chains {
  std::vector<std::int64_t> documents;
  std::vector<AttentionChain> chains;  // of one group each, pointing into documents
};

Chains make_chains(const SharedAttentionParams& p) {
  Chains made;
  made.documents.reserve(static_cast<std::size_t>(p.documents));
  const bool cached = p.prefix_index != nullptr;
  const std::int64_t count = cached ? p.prefixes : p.documents;
  for (std::int64_t c = 0; c < count; ++c) {
    const std::size_t first = made.documents.size();
    for (std::int64_t r = cached ? 0 : c; r < (cached ? p.documents : c + 1); ++r) {
      if (!cached || p.prefix_index[r] == c) made.documents.push_back(r);
    }
    for (std::int64_t g = 0; g < p.groups; ++g) {
      made.chains.push_back({cached ? c : -1, made.documents.data() + first,
                             static_cast<std::int64_t>(made.documents.size() - first), g});
    }
  }
  return made;
}

// Tasks are of different lengths: a thread takes the next one when it is done with its last.
template <class Task>
void run_tasks(int threads, std::int64_t count, const Task& task) {
  std::atomic<std::int64_t> next{0};
  parallel_for(static_cast<int>(std::min<std::int64_t>(threads, count)),
               std::min<std::int64_t>(threads, count), [&](std::int64_t begin, std::int64_t end) {
                 // A caller that works alone has all parts in one call.
                 static_cast<void>(begin);
                 static_cast<void>(end);
                 for (std::int64_t i = next++; i < count; i = next++) task(i);
               });
}

}  // namespace

void shared_attention_cpu(const SharedAttentionTensors& t, float scale, const std::string& isa,
                          int threads) {
  SharedAttentionParams p = shared_attention_params(t, scale);
  const AttentionKernels kernels = choose_kernels(select_isa(isa), p.dtype);
  const int used = choose_threads(p, threads);
  if (packs(kernels, p)) {
    const std::vector<std::int64_t> panels = whole_panels(p);
    p.packed_panels = panels.data();
    const std::vector<AttentionUnit> units = make_units(p, used);
    const std::int64_t floats = attention_unit_scratch(p.width);
    const auto count = static_cast<std::int64_t>(units.size());
    return run_tasks(used, count, [&](std::int64_t i) {
      const AttentionUnit* unit = units.data() + i;
      kernels.unit(p, *unit, i + used < count ? unit + used : nullptr, scratch(floats));
    });
  }
  if (p.packed != nullptr) throw InputError(kNoPackedForm);
  const std::vector<AttentionTile> tiles = make_tiles(p, used);
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
  const std::vector<std::int64_t> panels = whole_panels(p);
  p.packed_panels = panels.data();
  run_tasks(threads > 0 ? threads : default_threads(), p.prefixes * p.groups,
            [&](std::int64_t i) { kernels.pack(p, i / p.groups, i % p.groups); });
}

void shared_attention_backward_cpu(const SharedAttentionTensors& t,
                                   const SharedAttentionGradients& g, float scale,
                                   const std::string& isa, int threads) {
  SharedAttentionParams p = shared_attention_params(t, scale);
  shared_attention_add_gradients(g, p);
  const AttentionKernels kernels = choose_kernels(select_isa(isa), p.dtype);
  const Chains made = make_chains(p);
  std::int64_t keys = 0;
  for (std::int64_t r = 0; r < p.documents; ++r) keys = std::max(keys, document_keys(p, r));
  for (std::int64_t n = 0; n < p.prefixes; ++n) {
    keys = std::max<std::int64_t>(keys, p.cu_prefix[n + 1] - p.cu_prefix[n]);
  }
  const std::int64_t floats = attention_backward_scratch(p.width, keys);
  run_tasks(choose_threads(p, threads), static_cast<std::int64_t>(made.chains.size()),
            [&](std::int64_t i) {
              kernels.backward(p, made.chains[static_cast<std::size_t>(i)], scratch(floats));
            });
}

}  // namespace vlakern
