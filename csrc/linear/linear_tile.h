// What the driver and the per-ISA kernels agree on.
#pragma once

#include <cstdint>

#include "linear/linear.h"

namespace vlakern {

constexpr int kMostRows = 14;  // of any tile

// Some rows of x times one or two panels over some steps of K, into a tile of [rows, 32].
struct LinearTile {
  const char* x;              // [steps, rows] packed values
  const char* w;              // [steps] of 128 bytes, from the first or the second panel's 64
  void* tile;                 // [rows, 32] fp32, or int32 of int8; its first columns are w's
  const std::int32_t* start;  // [rows] what int8 sums start from
  const char* ahead;          // at each step this line and the one ahead_gap further are brought
  std::int64_t ahead_gap;     // into the second cache, and both move on by ahead_step; kernels of
  std::int64_t ahead_step;    // few rows leave all that to the processor
  std::int64_t steps;
  int rows;
  int panels;
  bool first;  // the tile holds nothing yet
};

// Some steps of a block of rows, rearranged so that a tile reads them in order.
struct LinearPack {
  const void* x;  // [rows, K] from the block's first row
  std::int64_t x_stride;
  std::int64_t k;
  std::int64_t step0;
  std::int64_t steps;
  char* packed;          // [steps, rows] from step0
  const float* inverse;  // int8: [rows] 127 / the row's largest magnitude
  std::int32_t* start;   // int8: [rows] -128 times the row's sum, added to atomically
  int rows;
};

// The epilogue of one tile, in three steps over z: one instance of each per choice, not per
// choices.
struct LinearFinish {
  const void* tile;        // [rows, 32] fp32 or int32
  float* z;                // [rows, 32] scaled with bias, then activated
  const float* w_scale;    // [32], int8 alone
  const float* x_scale;    // [rows], int8 alone
  const float* row_scale;  // [rows] or null
  std::int64_t row_scale_stride;
  const float* bias;     // [columns] or null
  const float* up_bias;  // [columns], with bias of a gated activation
  const void* residual;  // [rows, columns] or null
  std::int64_t residual_stride;
  void* out;  // [rows, columns]
  std::int64_t out_stride;
  int rows;
  int columns;  // at most 32, at most 16 of a gated activation
  bool gated;
};

struct LinearVariant {
  LinearKind kind;
  DType x;
  DType out;
  Activation activation;
};

struct LinearKernels {
  int rows_one;  // most rows of a tile of one panel
  int rows_two;  // most rows of a tile of two panels, 0 if there is none
  int x_size;    // bytes of a packed step of one row
  void (*tile)(const LinearTile&);
  void (*pack)(const LinearPack&);
  void (*scale)(const LinearFinish&);
  void (*activate)(const LinearFinish&);  // null for none
  void (*store)(const LinearFinish&);
  // The largest magnitude of a row of K values; `*taint` is 0, or NaN if one is not finite.
  float (*largest)(const void* x, std::int64_t k, float* taint);
  // Multiplies and adds in registers alone; returns how many operations that was. Null if unknown.
  std::int64_t (*busy)(std::int64_t turns);
};

LinearKernels linear_avx512bf16(const LinearVariant& variant);  // bf16 alone
LinearKernels linear_avx512vnni(const LinearVariant& variant);  // int8 alone
LinearKernels linear_avx512(const LinearVariant& variant);
LinearKernels linear_avx2(const LinearVariant& variant);
LinearKernels linear_neon(const LinearVariant& variant);
LinearKernels linear_scalar(const LinearVariant& variant);

// The kernels of an instruction set; int8 takes the best multiplication of bytes that it has.
LinearKernels linear_kernels(Isa isa, const LinearVariant& variant);

}  // namespace vlakern
