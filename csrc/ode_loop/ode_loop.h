// ode_loop: from noise to actions in one launch. All layers of the action expert and all
// evaluations of the solver, for few rows; a block stays on each multiprocessor, and all of them
// meet between phases. What an evaluation consists of (arXiv 2602.09722, Section 3):
//
//   embed      s = W3 silu(Wf x + t[time]) + b
//   a layer    qkv = W n(s), o = attention on [prefix | own], s += W o,
//              h = silu(Wg n(s)) Wu n(s), s += W h
//   unembed    v = W2 relu(W1 n(s) + b1) + b2, then the update of ode_step
//
// with n the RMS norm whose weights are in the product that follows: a factor of each row, which a
// block finds beside the product and applies to its sums. Sums are fp32 and always in one order;
// what passes between products is bf16, the stream s fp32 and, as input of products, bf16.
//
// A unit is the attention of 16 positions, chunk and head; the block that comes last of those that
// have its keys adds up their parts.
//
// Letters: N chunks, H positions of a chunk, R = N H rows, M width, F hidden columns of the MLP, A
// slots, Q query heads, G key-value heads, D head dim, T prefix rows, P positions.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "common/host_device.h"
#include "common/tensor.h"

namespace vlakern {

constexpr int kOdeLoopLayers = 64;  // that fit into the 4 KiB of a kernel's arguments
constexpr int kOdeLoopRows = 64;
constexpr int kOdeLoopWarps = 8;

// bf16 matrices lie row after row, K padded with zeros to a multiple of 16.
struct OdeLoopLayer {
  const std::uint16_t* qkv;      // [(Q + 2 G) D, M] bf16
  const std::uint16_t* o;        // [M, Q D] bf16
  const std::uint16_t* gate_up;  // [2 F, M] bf16: all rows of the gate, then all of up
  const std::uint16_t* down;     // [M, F] bf16
  const float* q_norm;           // [D]
  const float* k_norm;           // [D]
};

struct OdeLoopParams {
  OdeLoopLayer layers[kOdeLoopLayers];
  const std::uint16_t* embed_first;    // [M, A] bf16
  const std::uint16_t* embed_last;     // [M, M] bf16
  const float* embed_bias;             // [M]
  const std::uint16_t* unembed_first;  // [M, M] bf16
  const float* unembed_first_bias;     // [M]
  const std::uint16_t* unembed_last;   // [A, M] bf16
  const float* unembed_last_bias;      // [A]

  const float* noise;                // [R, A]
  const float* frozen;               // [R, A]
  const std::int32_t* frozen_len;    // [N]
  const std::uint8_t* slot_mask;     // [N, A]
  const std::int32_t* prefix_index;  // [N]
  const std::int32_t* cu_prefix;     // [prefixes + 1]
  const std::int32_t* kv_end;        // [R] logical keys that a query sees
  const std::int32_t* positions;     // [R]
  const std::int32_t* times;         // [evaluations, R] rows of time_table
  const float* time_table;           // [times, M]
  const float* cos;                  // [P, D / 2]
  const float* sin;                  // [P, D / 2]
  const std::uint16_t* kv;           // [layers, 2, T, G D] bf16

  float* x;                 // [R, A] the state, in the end the actions
  float* velocity;          // [R, A] of a step's first stage
  std::uint16_t* input;     // [R, A rounded up to 16] bf16
  std::uint16_t* embedded;  // [R, M] bf16
  float* stream;            // [R, M]
  std::uint16_t* rounded;   // [R, M] bf16, the stream once more
  std::uint16_t* qkv;       // [R, (Q + 2 G) D] bf16
  std::uint16_t* attended;  // [R, Q D] bf16
  std::uint16_t* hidden;    // [R, max(F, M)] bf16
  float* parts;             // [units, splits, 16, D] attention by each part of the keys
  float* part_rows;         // [units, splits, 16, 2] maximum and sum of each part's rows
  std::uint32_t* joined;    // [units] parts that are done; 0 before the first launch and after each
  std::uint32_t* counter;   // [1] of the blocks' meetings; 0 before the first launch

  std::int64_t kv_layer;     // elements from one layer's keys to the next's
  std::int64_t kv_values;    // from keys to values
  std::int64_t times_pitch;  // from one evaluation's times to the next's
  int chunks;                // N
  int chunk;                 // H
  int width;                 // M
  int mlp;                   // F
  int slots;                 // A
  int heads;                 // Q
  int groups;                // G
  int head_dim;              // D
  int depth;                 // layers
  int splits;                // of the keys of a unit
  int steps;
  int stages;   // evaluations of a step
  float dtau;   // 1 / steps
  float c0[2];  // of each stage: y = x + dtau (c0 v0 + c1 v)
  float c1[2];
  float eps;
};

// How it is launched: one block of kOdeLoopWarps warps on each multiprocessor.
struct OdeLoopPlan {
  int blocks;
  int row_tiles;   // of 16 rows: 1 or 4
  int ring_slots;  // of 512 bytes that each warp has for copies
  int shared;      // bytes
};

// Unpacks and checks; InputError names the argument, what was expected and what was found,
// UnsupportedError what the kernel does not do.
OdeLoopParams ode_loop_params(const std::map<std::string, Tensor>& tensors,
                              const std::map<std::string, double>& numbers);

// For a GPU with so many multiprocessors, and so many bytes of shared memory for a block.
OdeLoopPlan ode_loop_plan(const OdeLoopParams& p, int processors, int shared);

// Launches on `stream` of the current device; needs the CUDA module.
void ode_loop_cuda(const OdeLoopParams& p, std::uintptr_t stream);

}  // namespace vlakern
