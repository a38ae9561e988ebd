// Groups of rows, and the fp32 vectors that the rows of a group share.
#pragma once

#include <cstdint>
#include <string>

#include "common/error.h"
#include "common/scratch.h"
#include "norm/norm.h"
#include "norm/norm_row.h"

namespace vlakern {

inline std::int64_t group_of(const NormParams& p, std::int64_t r) {
  if (p.row_group != nullptr) return p.row_group[r * p.row_group_stride];
  return p.groups == 1 ? 0 : r / (p.rows / p.groups);
}

// The memory may have changed since the call was bound, and a group outside leads out of memory.
inline void check_groups(const NormParams& p) {
  if (p.row_group == nullptr) return;
  for (std::int64_t r = 0; r < p.rows; ++r) {
    const std::int64_t group = group_of(p, r);
    if (group >= 0 && group < p.groups) continue;
    throw InputError("norm: row_group must be in [0, " + std::to_string(p.groups) + "), got " +
                     std::to_string(group) + " for row " + std::to_string(r));
  }
}

// The factor a, addend c and gate of one group at a time, in memory that a thread keeps.
class NormVectors {
 public:
  NormVectors(const NormParams& p, const NormKernels& kernels) : p_(p), kernels_(kernels) {
    thread_local Scratch scratch;
    scratch.reserve(3, p.width);
    a_memory_ = scratch.row(0);
    c_memory_ = scratch.row(1);
    gate_memory_ = scratch.row(2);
  }

  void move_to(std::int64_t group) {
    if (group == group_) return;
    const bool first = group_ < 0;
    group_ = group;
    if (first || p_.scale.data != nullptr || p_.shift.data != nullptr) set_affine();
    if (p_.gate.data != nullptr) set_gate();
  }

  const float* a() const { return a_; }
  const float* c() const { return c_; }
  const float* gate() const { return gate_; }

 private:
  void set_affine() {
    const bool plus_one = p_.kind == NormKind::kRmsPlusOne;
    const bool factor = p_.weight.data != nullptr || p_.scale.data != nullptr;
    const bool addend = p_.bias.data != nullptr || p_.shift.data != nullptr;
    NormAffine s{p_.weight.row(0),
                 p_.bias.row(0),
                 p_.scale.row(group_),
                 p_.shift.row(group_),
                 p_.weight.dtype,
                 p_.bias.dtype,
                 p_.scale.dtype,
                 p_.shift.dtype,
                 plus_one,
                 nullptr,
                 nullptr};
    if (factor) a_ = s.a = a_memory_;
    if (addend) c_ = s.c = c_memory_;
    if (p_.weight.data != nullptr && p_.weight.dtype == DType::kF32 && s.scale == nullptr &&
        !plus_one) {
      a_ = reinterpret_cast<const float*>(p_.weight.data);
      s.a = nullptr;
    }
    if (s.a != nullptr || s.c != nullptr) kernels_.affine(s, p_.width);
  }

  void set_gate() {
    gate_ = reinterpret_cast<const float*>(p_.gate.row(group_));
    if (p_.gate.dtype == DType::kF32) return;
    kernels_.widen(gate_, p_.gate.dtype, gate_memory_, p_.width);
    gate_ = gate_memory_;
  }

  const NormParams& p_;
  const NormKernels& kernels_;
  std::int64_t group_ = -1;
  float* a_memory_ = nullptr;
  float* c_memory_ = nullptr;
  float* gate_memory_ = nullptr;
  const float* a_ = nullptr;
  const float* c_ = nullptr;
  const float* gate_ = nullptr;
};

}  // namespace vlakern
