// image_prep: uint8 images to normalised planes or rows of patches in one pass over the rows.
//
// An antialiasing resize is two passes of weighted sums over levels, along rows and then along
// columns, each total >> 22 after half a unit was added and clamped to 0..255: Pillow's arithmetic,
// exact in int32, so every instruction set and thread count gives the same bits. The two-point rule
// (fp32 weights) and the normalisation (level / divisor - mean) / std are fp32, fused only where
// the code says so; both quotients are correctly rounded. Letters: V views, H and W of an image,
// S and T of the output, M and N of the resized image in it, K and L inputs per output, P side of
// a patch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/cpu_features.h"
#include "common/tensor.h"
#include "image_prep/image_prep_kernels.h"

namespace vlakern {

struct ImagePrepTensors {
  Tensor images;     // [V, H, W, 3] uint8, any strides
  Tensor y_first;    // [M] int32
  Tensor y_weights;  // [M, K] int32 in units of 2^-22, or fp32 with K = 1 or 2
  Tensor x_first;    // [N] int32
  Tensor x_weights;  // [N, L] as y_weights
  Tensor out;        // [V, 3, S, T] or [V, S/P * T/P, 3PP], contiguous within a view
};

struct ImagePrepSettings {
  std::int64_t top, left;      // of the resized image in the output
  std::int64_t height, width;  // S, T
  std::int64_t patch;          // P, 0 for planes
  ImagePrepNorm norm;
  std::uint8_t pad[3];
};

struct ImagePrepAxis {
  std::int64_t inputs;
  std::int64_t outputs;
  int taps;
  bool identity;                     // output i is input i
  std::vector<std::int32_t> first;   // [outputs]
  std::vector<std::int32_t> fixed;   // [outputs, taps], if whole levels
  std::vector<float> real;           // [outputs, 2], if not
  std::vector<std::int32_t> offset;  // [outputs + 3]: 3 * first, the last repeated
  std::vector<std::int32_t> packed;  // fixed in the kernels' layout
};

// What the driver reads. Tables are copied here, so that checked indices stay what was checked.
struct ImagePrepParams {
  const std::uint8_t* images;
  std::int64_t stride[4];
  char* out;
  std::int64_t out_stride;  // of V [elements]
  DType out_dtype;
  std::int64_t views;
  ImagePrepSettings s;
  ImagePrepAxis y, x;
  bool whole;  // levels stay whole
  ImagePrepKernels kernels;
  ImagePrepStore store;
  int groups;   // of four taps along x
  int threads;  // at least 1
  std::uint8_t* workspace;
};

// Unpacks and checks, also every index of the tables; InputError names what does not fit. `isa`
// forces an instruction set unless empty; `threads` 0 means every core of this process.
ImagePrepParams image_prep_params(const ImagePrepTensors& t, const ImagePrepSettings& s,
                                  const std::string& isa, int threads);

// Bytes of memory that image_prep_cpu needs at p.workspace.
std::int64_t image_prep_workspace(const ImagePrepParams& p);

void image_prep_cpu(const ImagePrepParams& p);

}  // namespace vlakern
