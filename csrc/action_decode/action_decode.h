// action_decode: value = x * scale + offset; copies move single values to their output columns, and
// poses turn a chunk of end-effector actions into the absolute poses that they mean:
//
//   world_relative  p_t = p_0 + p          R_t = R R_0
//   world_delta     p_t = p_t-1 + p        R_t = R R_t-1
//   eef_relative    p_t = p_0 + R_0 p      R_t = R_0 R
//   eef_delta       p_t = p_t-1 + R_t-1 p  R_t = R_t-1 R
//
// Arithmetic is double, rounded once to fp32, one row after the other on the caller's thread.
// Letters: B rows, H positions of the chunk, A slots, N output columns, C copies, P poses.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/rotation.h"
#include "common/tensor.h"

namespace vlakern {

struct ActionDecodeTensors {
  Tensor x;       // [B, H, A] fp32, bf16 or fp16
  Tensor scale;   // [A] fp32
  Tensor offset;  // [A] fp32
  Tensor base;    // [B, P, 7] fp32: position, quaternion w x y z
  Tensor copies;  // [C, 3] int32: source slot, column, binary
  Tensor affine;  // [C, 2] fp32: gain, shift
  Tensor poses;   // [P, 6] int32: position slot, rotation slot or -1, kind; the same for columns
  Tensor out;     // [B, H, N] fp32
};

// What a kernel reads. Tables are copied here, so that checked indices stay what was checked; x and
// base are read afresh by every call. Strides are in elements.
struct ActionDecodeParams {
  struct Linear {
    double gain, shift;
  };
  struct Copy {
    std::int64_t slot, column;
    Linear of_x;  // out = x * gain + shift: denormalisation and affine in one
    bool binary;  // x becomes -1 or 1 first
  };
  struct Pose {
    std::int64_t slot, rotation_slot, column, rotation_column;
    RotationKind kind, kind_out;
    bool rotates;
  };

  const void* x;      // [B, H, A]
  const float* base;  // [B, P, 7]
  float* out;         // [B, H, N]
  std::int64_t x_stride[3];
  std::int64_t base_stride[3];
  std::int64_t out_stride[3];
  std::int64_t rows;       // B
  std::int64_t positions;  // H
  std::int64_t columns;    // N
  DType x_dtype;
  bool delta;                 // each pose builds on the one before, not on the base
  bool in_hand;               // actions are in hand coordinates
  std::vector<Linear> slots;  // [A]
  std::vector<Copy> copies;   // [C]
  std::vector<Pose> poses;    // [P]
};

// Unpacks and checks, also every index of the tables; InputError names what does not fit.
ActionDecodeParams action_decode_params(const ActionDecodeTensors& t, const std::string& frame);

void action_decode_cpu(const ActionDecodeParams& p);

}  // namespace vlakern
