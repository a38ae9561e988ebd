// ode_step: x_out = x + dtau * (c0 * v0 + c1 * v) and tau_out = tau + c_tau * dtau, where leading
// frozen positions take given values (and tau 1) and absent slots keep x.
//
// Arithmetic is fp32: x_out = fma(a1, v, fma(a0, v0, x)) with a1 = dtau * c1 and a0 = dtau * c0,
// and tau_out = fma(c_tau, dtau, tau), rounded once to x's dtype. Nothing else is contracted, so
// every instruction set and thread count gives the same bits. Letters: B rows, H positions of the
// chunk, A slots, T = 1 or H.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "common/tensor.h"

namespace vlakern {

struct OdeStepTensors {
  Tensor x;                          // [B, H, A] fp32, bf16 or fp16
  Tensor v;                          // [B, H, A] fp32, bf16 or fp16
  std::optional<Tensor> v0;          // [B, H, A] v's dtype
  Tensor tau;                        // [B, T] fp32
  Tensor dtau;                       // [B] fp32
  std::optional<Tensor> frozen;      // [B, H, A] x's dtype
  std::optional<Tensor> frozen_len;  // [B] int32
  std::optional<Tensor> slot_mask;   // [B, A] uint8
  Tensor x_out;                      // [B, H, A] x's dtype; may be x itself
  Tensor tau_out;                    // [B, T] fp32; may be tau itself
};

struct OdeStepCoefficients {
  float c0;
  float c1;
  float c_tau;
};

// What a kernel reads; null pointers stand for absent arguments. Strides are in elements.
struct OdeStepParams {
  const void* x;                   // [B, H, A]
  const void* v;                   // [B, H, A]
  const void* v0;                  // [B, H, A] or null
  const float* tau;                // [B, T]
  const float* dtau;               // [B]
  const void* frozen;              // [B, H, A] or null
  const std::int32_t* frozen_len;  // [B] or null
  const std::uint8_t* slot_mask;   // [B, A] or null
  void* x_out;                     // [B, H, A]
  float* tau_out;                  // [B, T]

  std::int64_t x_stride[3];
  std::int64_t v_stride[3];
  std::int64_t v0_stride[3];
  std::int64_t frozen_stride[3];
  std::int64_t x_out_stride[3];
  std::int64_t slot_mask_stride[2];
  std::int64_t tau_stride[2];
  std::int64_t tau_out_stride[2];
  std::int64_t dtau_stride;
  std::int64_t frozen_len_stride;

  std::int64_t rows;       // B
  std::int64_t positions;  // H
  std::int64_t slots;      // A
  bool tau_per_position;   // T == H and frozen positions write tau 1
  DType x_dtype;
  DType v_dtype;
  OdeStepCoefficients c;
};

// Unpacks and checks; InputError names the argument, what was expected and what was found.
OdeStepParams ode_step_params(const OdeStepTensors& t, bool tau_per_position,
                              const OdeStepCoefficients& c);

// `isa` forces an instruction set unless empty; `threads` 0 means every core of this process.
void ode_step_cpu(const OdeStepTensors& t, bool tau_per_position, const OdeStepCoefficients& c,
                  const std::string& isa, int threads);

// Launches on `stream` of the current device; needs the CUDA module.
void ode_step_cuda(const OdeStepTensors& t, bool tau_per_position, const OdeStepCoefficients& c,
                   std::uintptr_t stream);

}  // namespace vlakern
