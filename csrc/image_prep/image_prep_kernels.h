// What the driver and the per-ISA kernels of image_prep agree on.
//
// Between the passes a row of levels is RGBX: four bytes a pixel, of which the last means nothing.
// Such rows may be read and written up to kImagePrepSlack bytes past their end.
#pragma once

#include <cstdint>

#include "common/tensor.h"

namespace vlakern {

constexpr int kImagePrepBits = 22;     // of a weight's fraction
constexpr int kImagePrepSlack = 64;    // [bytes]
constexpr int kImagePrepTogether = 4;  // rows that one call of `columns` resizes
constexpr int kImagePrepReach = 128;   // bytes that `columns` may read from a window's start

// (level / divisor - mean) / std.
struct ImagePrepNorm {
  float divisor;
  float mean[3];
  float std[3];
};

// How four neighbouring weights of one output lie in memory, as 32-bit words.
enum class ImagePrepLayout : int {
  kPlain,  // 4 weights
  kPairs,  // upper halves of 0 and 1, their lower 12 bits, the same of 2 and 3; two int16 a word
  kBytes,  // lowest bytes of all four, middle bytes, highest bytes; signed digits to base 256
};

struct ImagePrepColumns {
  const std::int32_t* offset;   // [count + 3] first byte of every output's window
  const std::int32_t* weights;  // [count, groups, words]; kBytes: [count / 4, groups, 3, 4, 4],
                                // every word four times, one for each channel and the fourth byte
  int groups;
  std::int64_t count;
  std::int64_t ahead;  // bytes from a row to the one that is resized in its place next time
};

struct ImagePrepRow {
  const std::uint8_t* levels;  // RGBX [width], or null
  const float* values;         // [3, plane], or null; may be read up to 16 past the end
  std::int64_t plane;
  void* out;                    // channel 0 of the row's first pixel
  std::int64_t channel_stride;  // [elements]
  std::int64_t run;             // pixels that are neighbours in out
  std::int64_t run_stride;      // [elements]
  std::int64_t width;           // a multiple of run
};

using ImagePrepStore = void (*)(const ImagePrepRow& row, const ImagePrepNorm& norm);

struct ImagePrepKernels {
  ImagePrepLayout layout;
  // RGB to RGBX; reads nothing past the end.
  void (*expand)(const std::uint8_t* rgb, std::int64_t pixels, std::uint8_t* rgbx);
  // Four rows along x; reads 16 bytes at every 12 of a window, or kImagePrepReach from its start;
  // writes up to the slack past the end.
  void (*columns)(const std::uint8_t* const (&rows)[4], const ImagePrepColumns& table,
                  std::uint8_t* const (&out)[4]);
  // The weighted sum of four times `groups` RGBX rows; writes up to the slack past the end.
  void (*blend)(const std::uint8_t* const* rows, const std::int32_t* weights, int groups,
                std::int64_t bytes, std::uint8_t* out);
  // out = a * weights[0] + b * weights[1]; reads nothing past the end.
  void (*blend_real)(const std::uint8_t* a, const std::uint8_t* b, const float* weights,
                     std::int64_t count, float* out);
  // RGB values to planes, out = rgb[offset] * weights[0] + rgb[offset + step] * weights[1]; reads
  // one value past the end.
  void (*columns_real)(const float* rgb, const std::int32_t* offset, const float* weights,
                       std::int64_t step, std::int64_t count, float* out, std::int64_t plane);
  ImagePrepStore store_f32, store_bf16, store_f16;
};

ImagePrepKernels image_prep_avx512bf16();
ImagePrepKernels image_prep_avx512();
ImagePrepKernels image_prep_avx2();
ImagePrepKernels image_prep_neon();
ImagePrepKernels image_prep_scalar();

}  // namespace vlakern
