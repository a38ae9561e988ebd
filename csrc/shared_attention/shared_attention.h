// shared_attention: softmax(scale q k^T) v over the first kv_end[i] logical keys of query i's
// document, which are the rows of its cached prefix followed by its own rows; and its gradients.
//
// Joint query i is row rows[i] (i if null) of q, out and lse. Query head h reads key-value head
// h / (H / G). A query that sees nothing gives 0 and -inf. Letters: T rows of queries, S rows of
// own keys, P rows of cached keys, R documents, N cached prefixes, H query heads, G key-value
// heads, D head dim.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "common/tensor.h"

namespace vlakern {

struct SharedAttentionTensors {
  Tensor q;                            // [T, H, D] fp32 or bf16; D adjacent, here and below
  Tensor k;                            // [S, G, D] q's dtype
  Tensor v;                            // [S, G, D] q's dtype
  Tensor cu_q;                         // [R + 1] int32
  Tensor cu_k;                         // [R + 1] int32
  Tensor kv_end;                       // [T] int32
  std::optional<Tensor> cu_prefix;     // [N + 1] int32
  std::optional<Tensor> prefix_index;  // [R] int32
  std::optional<Tensor> prefix_k;      // [P, G, D] q's dtype
  std::optional<Tensor> prefix_v;      // [P, G, D] q's dtype
  std::optional<Tensor> rows;          // [T] int32, a permutation
  std::optional<Tensor> packed;        // uint8, what shared_attention_pack_prefix made of these
  Tensor out;                          // [T, H, D] q's dtype
  Tensor lse;                          // [T, H] fp32, natural logarithm
};

struct SharedAttentionGradients {
  Tensor grad_out;                      // [T, H, D] q's dtype
  std::optional<Tensor> grad_lse;       // [T, H] fp32
  Tensor grad_q;                        // [T, H, D] q's dtype
  Tensor grad_k;                        // [S, G, D] q's dtype
  Tensor grad_v;                        // [S, G, D] q's dtype
  std::optional<Tensor> grad_prefix_k;  // [P, G, D] q's dtype
  std::optional<Tensor> grad_prefix_v;  // [P, G, D] q's dtype
};

// Rows of heads; strides are in elements, the elements of a head are adjacent.
struct HeadRows {
  void* data;
  std::int64_t row;
  std::int64_t head;
};

// What a kernel reads. Null pointers stand for absent arguments.
struct SharedAttentionParams {
  HeadRows q, out, grad_out, grad_q;                          // [T, H, D]
  HeadRows k, v, grad_k, grad_v;                              // [S, G, D]
  HeadRows prefix_k, prefix_v, grad_prefix_k, grad_prefix_v;  // [P, G, D] or null
  HeadRows lse, grad_lse;                                     // [T, H] fp32; grad_lse or null
  const std::int32_t* cu_q;                                   // [R + 1]
  const std::int32_t* cu_k;                                   // [R + 1]
  const std::int32_t* kv_end;                                 // [T]
  const std::int32_t* cu_prefix;                              // [N + 1] or null
  const std::int32_t* prefix_index;                           // [R] or null
  const std::int32_t* rows;                                   // [T] or null
  char* packed;                                               // whole panels of prefixes or null
  const std::int64_t* packed_panels;                          // [N + 1] of them before each prefix

  std::int64_t documents;  // R
  std::int64_t prefixes;   // N
  std::int64_t queries;    // T
  std::int64_t heads;      // H
  std::int64_t groups;     // G
  std::int64_t width;      // D, a multiple of 8
  float scale;             // >= 0
  DType dtype;
};

// Unpacks and checks, ranges and permutation too: no index that a kernel follows leaves its tensor.
SharedAttentionParams shared_attention_params(const SharedAttentionTensors& t, float scale);
// Of the prefixes alone.
SharedAttentionParams shared_attention_prefix_params(const Tensor& prefix_k, const Tensor& prefix_v,
                                                     const Tensor& cu_prefix, const Tensor* packed);
void shared_attention_add_gradients(const SharedAttentionGradients& g, SharedAttentionParams& p);

// A prefix that many calls continue, as an integration's steps do, may be packed once: the calls
// are faster, their bits the same. Bytes that this takes, at an address that 64 divides; false
// where an instruction set, a dtype or a head dim has no such form.
std::pair<bool, std::int64_t> shared_attention_prefix_bytes(const Tensor& prefix_k,
                                                            const Tensor& cu_prefix,
                                                            const std::string& isa);
void shared_attention_pack_prefix(const Tensor& prefix_k, const Tensor& prefix_v,
                                  const Tensor& cu_prefix, const Tensor& packed,
                                  const std::string& isa, int threads);

// `isa` forces an instruction set unless empty; `threads` 0 means every core of this process. The
// result does not depend on the number of threads.
void shared_attention_cpu(const SharedAttentionTensors& t, float scale, const std::string& isa,
                          int threads);
void shared_attention_backward_cpu(const SharedAttentionTensors& t,
                                   const SharedAttentionGradients& g, float scale,
                                   const std::string& isa, int threads);

}  // namespace vlakern
