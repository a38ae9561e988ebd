// Every buffer of an engine, as offsets into one piece of memory.
#pragma once

#include <cstdint>

#include "engine/engine_model.h"

namespace vlakern {

// Vision is over before a prefix begins, and a prefix before its actions: their buffers overlap,
// all but those that one stage leaves for the next.
struct EngineBuffers {
  char* patches;        // [V, patches, 3 P P] or [V, pixels, 3]
  float* image_tokens;  // [V * tokens, semantic hidden]
  char* workspace;      // of the products
  float* lse;           // of attention: [rows, heads]

  // Vision, with W = hidden and X rows over all views.
  float* vision_x;              // [X, W]
  float* vision_normed;         // [X, W], or the joined patches
  char* vision_qkv;             // [X, 3 W]
  char* vision_out;             // [X, W]
  char* vision_hidden;          // [X, mlp], or the connector's
  float* vision_joined;         // [V * tokens, W s s]
  char* stem[2];                // planes of one view, and gathered neighbourhoods
  char* stem_rows;              //
  std::int32_t* vision_cu;      // [V + 1]
  std::int32_t* vision_kv_end;  // [X]

  // The layers, of both experts; the largest rows of a prefix or of the chunks.
  float* semantic_x;     // [E, hidden]
  float* action_x;       // [M, hidden]
  float* normed;         // [rows, hidden]
  char* semantic_qkv;    // [E, (H + 2 G) D]
  char* action_qkv;      // [M, (H + 2 G) D]
  char* q;               // [T or M, H, D]
  char* out;             // [T or M, H, D]
  char* hidden;          // [rows, mlp]
  float* cos;            // [T or M, D / 2]
  float* sin;            // [T or M, D / 2]
  char* own_k;           // [M, G, D], or [T or M, G, D] where layers cross
  char* own_v;           // likewise
  float* states;         // [R, hidden]: state tokens of the semantic expert
  float* time;           // [M, hidden]: of each row, where positions are frozen
  float* added;          // [M, hidden]: what the next adaptive norm adds times a gate
  float* embedded;       // [M, hidden]
  char* packed;          // [layers, packed_bytes]: prefixes as attention reads them, or nothing
  float* velocity[2];    // [M, A]
  float* stage_x;        // [M, A]
  float* tau;            // [M]
  float* dtau;           // [N]
  std::int32_t* rows;    // [M]
  std::int32_t* cu;      // [N + 1]
  std::int32_t* kv_end;  // [M]
  std::int32_t* group;   // [M]: 1 of frozen positions, for adaptive norms

  // Of actions that see the prefix alone, empty where no layer crosses.
  float* alone_cos;            // [M, D / 2]
  float* alone_sin;            // [M, D / 2]
  std::int32_t* alone_cu;      // [N + 1]: no keys of their own
  std::int32_t* alone_kv_end;  // [M]

  std::int64_t workspace_bytes;
  std::int64_t packed_bytes;  // 0 where attention has no packed form
  std::int64_t bytes;         // of everything
};

// Offsets from `memory`, which may be 0 to learn `bytes` alone.
EngineBuffers engine_buffers(const EngineModel& m, const EngineLimits& limits,
                             std::uintptr_t memory);

}  // namespace vlakern
