// What the driver and the per-ISA kernels agree on.
#pragma once

#include <cstdint>

#include "common/cpu_features.h"
#include "common/tensor.h"

namespace vlakern {

struct NormRow {
  const void* x;         // [width]
  const void* residual;  // [width] or null
  const float* gate;     // [width] or null: 1
  const float* a;        // [width] or null: 1
  const float* c;        // [width] or null: 0
  void* h;               // [width] with a residual
  void* y;               // [width]
  std::int64_t width;
  float eps;
  const void* next_x;         // of the next row, fetched meanwhile
  const void* next_residual;  // likewise
};

struct NormBackRow {
  const void* dy;        // [width]
  const void* dh;        // [width] or null
  const void* h;         // [width]
  const void* residual;  // [width], for the sum g
  void* dx;              // [width]
  void* dresidual;       // [width] or null
  const float* gate;     // [width] or null: 1
  const float* a;        // [width] or null: 1
  float* p;              // [width] or null: += dy * n
  float* q;              // [width] or null: += dy
  float* g;              // [width] or null: += residual * gradient of h
  std::int64_t width;
  float eps;
  const NormBackRow* next;  // whose inputs are fetched meanwhile
};

// Vectors of one width in any dtype, and what they make.
struct NormAffine {
  const void* weight;  // null: 1
  const void* bias;    // null: 0
  const void* scale;   // null: 0
  const void* shift;   // null: 0
  DType weight_dtype, bias_dtype, scale_dtype, shift_dtype;
  bool plus_one;
  float* a;  // [width] or null: w * (1 + scale)
  float* c;  // [width] or null: bias * (1 + scale) + shift
};

struct NormVariant {
  DType x;
  DType residual;
  bool layer;
};

struct NormKernels {
  void (*forward)(const NormRow&);
  void (*backward)(const NormBackRow&);
  void (*affine)(const NormAffine&, std::int64_t width);
  void (*widen)(const void* from, DType dtype, float* to, std::int64_t width);
  void (*accumulate)(const float* from, float* to, std::int64_t width);  // to += from
  void (*multiply_add)(const float* a, const float* b, float* to, std::int64_t width);
};

NormKernels norm_kernels(Isa isa, const NormVariant& variant);

NormKernels norm_avx512bf16(const NormVariant& variant);
NormKernels norm_avx512(const NormVariant& variant);
NormKernels norm_avx2(const NormVariant& variant);
NormKernels norm_neon(const NormVariant& variant);
NormKernels norm_scalar(const NormVariant& variant);

}  // namespace vlakern
