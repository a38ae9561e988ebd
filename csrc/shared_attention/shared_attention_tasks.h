// How the work of shared_attention is shared out; for its two drivers.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "common/cpu_features.h"
#include "common/thread_pool.h"
#include "shared_attention/shared_attention_tile.h"

namespace vlakern {

AttentionKernels choose_kernels(Isa isa, DType dtype);

// Below this many multiplications a second thread costs more than it saves.
constexpr std::int64_t kWorkPerThread = 1 << 20;

// Each thread keeps its scratch memory for the next call.
inline float* scratch(std::int64_t floats) {
  thread_local std::vector<float> memory;
  const auto needed = static_cast<std::size_t>(floats + 16);
  if (memory.size() < needed) memory.resize(needed);
  void* start = memory.data();
  std::size_t space = memory.size() * sizeof(float);
  return static_cast<float*>(
      std::align(64, static_cast<std::size_t>(floats) * sizeof(float), start, space));
}

inline std::int64_t document_keys(const SharedAttentionParams& p, std::int64_t r) {
  std::int64_t keys = p.cu_k[r + 1] - p.cu_k[r];
  if (p.prefix_index == nullptr) return keys;
  const std::int32_t* cu = p.cu_prefix + p.prefix_index[r];
  return keys + cu[1] - cu[0];
}

inline std::int64_t query_rows(const SharedAttentionParams& p, std::int64_t r) {
  return (p.cu_q[r + 1] - p.cu_q[r]) * (p.heads / p.groups);
}

inline int choose_threads(const SharedAttentionParams& p, int threads) {
  std::int64_t work = 0;
  for (std::int64_t r = 0; r < p.documents; ++r) {
    work += query_rows(p, r) * document_keys(p, r) * p.width * p.groups;
  }
  const int most = threads > 0 ? threads : default_threads();
  return static_cast<int>(std::clamp<std::int64_t>(work / kWorkPerThread, 1, most));
}

// Tiles of a document with `rows` query rows, each of at most `units` units; as even as can be.
inline std::int64_t tile_count(std::int64_t rows, std::int64_t units) {
  const std::int64_t all = round_up(rows, kAttentionUnit) / kAttentionUnit;
  return (all + units - 1) / units;
}

// Tile t of `parts` tiles of `rows` rows.
inline AttentionTile tile_of(std::int64_t document, std::int64_t group, std::int64_t rows,
                             std::int64_t t, std::int64_t parts) {
  const std::int64_t all = round_up(rows, kAttentionUnit) / kAttentionUnit;
  return {document, group, all * t / parts * kAttentionUnit,
          std::min(rows, all * (t + 1) / parts * kAttentionUnit)};
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

}  // namespace vlakern
