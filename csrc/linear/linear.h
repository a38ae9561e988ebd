// linear: out = act(row_scale * (x W^T) + bias) + residual, with weights packed for streaming.
//
// Letters: M rows, K inputs, N weight rows, C output columns: N, or N / 2 of a gated activation.
//
// Packed weights hold pairs of panels of 16 weight rows, [P, S, 2, 16, G] with G values of K side
// by side so that a panel's step fills one register: G = 2 for bf16, 1 for fp32, 4 for int8, S =
// ceil(K / G), all padded with zeros: one stream from the first byte to the last. The two panels of
// a pair, the unit of work, are 32 columns, or, of a gated activation, 16 gate rows and the 16 up
// rows that belong to them. int8 weights are stored plus 128, since the instruction that multiplies
// bytes takes one factor without sign.
//
// A sum over K runs in order, in chains of some steps that are added in order, whatever M and the
// number of threads are: a row's bits depend on that row and the weights alone. Chains are short
// where the output is fp32, since the error of a sum grows with its length.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/cpu_features.h"
#include "common/tensor.h"

namespace vlakern {

constexpr int kPanel = 16;              // weight rows of a panel
constexpr int kPair = 2 * kPanel;       // weight rows of a pair
constexpr int kLine = 64;               // bytes of one panel's step, and of a cache line
constexpr int kStep = 2 * kLine;        // bytes of one pair's step
constexpr std::int64_t kMostK = 65536;  // int8: 255 * 127 * K must stay below 2^31

enum class LinearKind : int { kBF16, kF32, kInt8 };
enum class Activation : int { kNone, kSilu, kGeluErf, kGeluTanh, kRelu, kSiluGate, kGeluTanhGate };

LinearKind linear_kind(const std::string& name);           // bf16, fp32, int8
Activation activation_from_name(const std::string& name);  // none, silu, ..., gelu_tanh_gate

// Unnamed, so that each translation unit keeps the copy compiled for its own instruction set.
namespace {

constexpr bool is_gated(Activation a) { return a >= Activation::kSiluGate; }
constexpr int values_per_step(LinearKind kind) {
  return kind == LinearKind::kBF16 ? 2 : kind == LinearKind::kF32 ? 1 : 4;
}

}  // namespace

struct LinearTensors {
  Tensor x;                         // [M, K] fp32 or bf16, columns adjacent
  Tensor panels;                    // [P * S * 32] int32: the packed weights
  std::optional<Tensor> w_scale;    // [P * 32] fp32, in the order of the panels: int8 alone
  std::optional<Tensor> bias;       // [N] fp32
  std::optional<Tensor> residual;   // [M, C] out's dtype, columns adjacent; may be out itself
  std::optional<Tensor> row_scale;  // [M] fp32
  Tensor out;                       // [M, C] fp32 or bf16, columns adjacent
  Tensor workspace;                 // [linear_workspace(...)] uint8
};

// What the driver reads; null pointers stand for absent arguments. Row strides are in elements.
struct LinearParams {
  const void* x;           // [M, K]
  const char* panels;      // [P, S, 128] bytes
  const float* w_scale;    // [P * 32] or null
  const float* bias;       // [N] or null
  const void* residual;    // [M, C] or null
  const float* row_scale;  // [M] or null
  void* out;               // [M, C]
  char* workspace;

  std::int64_t x_stride;
  std::int64_t residual_stride;
  std::int64_t out_stride;
  std::int64_t row_scale_stride;

  std::int64_t m;
  std::int64_t n;
  std::int64_t k;
  std::int64_t columns;  // C
  std::int64_t steps;    // S
  std::int64_t pairs;    // P
  LinearKind kind;
  Activation activation;
  DType x_dtype;
  DType out_dtype;
  Isa isa;
  int threads;
  // The workspace holds x already, packed by a linear with the same x, M, K, kind and isa.
  bool x_is_packed;
};

// Unpacks and checks; InputError names the argument, what was expected and what was found.
// `isa` forces an instruction set unless empty; `threads` 0 means every core of this process.
LinearParams linear_params(const LinearTensors& t, std::int64_t n, std::int64_t k,
                           const std::string& kind, const std::string& activation,
                           const std::string& isa, int threads);

// Bytes of workspace, at least 1.
std::int64_t linear_workspace(std::int64_t m, std::int64_t n, std::int64_t k,
                              const std::string& kind, const std::string& activation,
                              const std::string& isa, int threads);

void linear_cpu(const LinearParams& p);

// The same without tensors and without checks, for callers in C++ that hold packed weights:
//
//   LinearParams p = linear_sizes(m, n, k, LinearKind::kBF16, Activation::kNone, isa, threads);
//   linear_bind_weights(p, packed, has_bias);
//   p.x = x, p.x_stride = ..., p.x_dtype = ..., p.out = out, p.out_stride = ..., p.out_dtype = ...;
//   p.residual, p.residual_stride, p.row_scale, p.row_scale_stride where there are any;
//   p.workspace = memory of linear_workspace(p) bytes;
//   linear_cpu(p);
//
// As phases of a larger job, whose workers are awake already, see linear_job.h.
LinearParams linear_sizes(std::int64_t m, std::int64_t n, std::int64_t k, LinearKind kind,
                          Activation activation, Isa isa, int threads);

// int32 words of packed weights: panels, the scales of int8 in the panels' order, then the bias.
std::int64_t linear_packed_words(const LinearParams& p, bool has_bias);
void linear_bind_weights(LinearParams& p, const void* packed, bool has_bias);

// Bytes of workspace once sizes and dtypes are set, at least 1; for any number of threads up to
// p.threads. Calls that do not run at the same time may share it.
std::int64_t linear_workspace(const LinearParams& p);

}  // namespace vlakern
