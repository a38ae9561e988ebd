// What the driver and the per-ISA kernels agree on: the heads of one token.
#pragma once

#include <cstdint>

#include "common/cpu_features.h"
#include "common/tensor.h"

namespace vlakern {

struct QkvHeads {
  const void* x;          // [heads, 2 * half]
  std::int64_t x_stride;  // between heads [elements], as all strides here
  void* y;                // [heads, 2 * half]
  std::int64_t y_stride;
  const float* weight;  // [2 * half] or null: no norm
  const float* cos;     // [half]
  const float* sin;     // [half]
  float* factors;       // [4, half] workspace
  std::int64_t heads;
  std::int64_t half;
  float eps;
};

struct QkvBackHeads {
  const void* x;  // [heads, 2 * half]
  std::int64_t x_stride;
  const void* dy;  // [heads, 2 * half]
  std::int64_t dy_stride;
  void* dx;  // [heads, 2 * half]
  std::int64_t dx_stride;
  const float* weight;  // [2 * half] or null: no norm
  const float* cos;     // [half]
  const float* sin;     // [half]
  float* dweight;       // [2 * half] or null: += the sum over heads
  float* dcos;          // [half] or null: += the sum over heads
  float* dsin;          // [half], with dcos
  const void* next_x;   // of the next token, fetched meanwhile
  const void* next_dy;  // likewise
  std::int64_t heads;
  std::int64_t half;
  float eps;
};

struct QkvKernels {
  void (*forward)(const QkvHeads&);
  void (*backward)(const QkvBackHeads&);  // all in the input's dtype
  void (*copy)(const void* x, void* y, std::int64_t count);
  void (*copy_back)(const void* y, void* x, std::int64_t count);  // in the input's dtype
  // A weight in fp32, 1 added if `plus_one`.
  void (*widen)(const void* from, DType dtype, bool plus_one, float* to, std::int64_t count);
  // to += from, where `carry` keeps what the rounding lost (Kahan 1965).
  void (*accumulate)(const float* from, float* to, float* carry, std::int64_t count);
};

struct QkvVariant {
  DType in;
  DType out;
};

QkvKernels qkv_prep_kernels(Isa isa, const QkvVariant& variant);

QkvKernels qkv_prep_avx512bf16(const QkvVariant& variant);
QkvKernels qkv_prep_avx512(const QkvVariant& variant);
QkvKernels qkv_prep_avx2(const QkvVariant& variant);
QkvKernels qkv_prep_neon(const QkvVariant& variant);
QkvKernels qkv_prep_scalar(const QkvVariant& variant);

}  // namespace vlakern
