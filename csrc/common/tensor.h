// A tensor as native code sees it: integers from Python, no torch.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

namespace vlakern {

enum class DType : int { kF32, kBF16, kF16, kI32, kU8, kI64 };

const char* dtype_name(DType dtype);
int dtype_size(DType dtype);              // [bytes]
DType dtype_from_name(const char* name);  // torch's names; "bool" is kU8

constexpr int kMaxRank = 4;

struct Tensor {
  std::uintptr_t data = 0;
  DType dtype = DType::kF32;
  int rank = 0;
  std::int64_t shape[kMaxRank] = {};
  std::int64_t stride[kMaxRank] = {};  // [elements]
};

// Binds letters to sizes across an op's arguments: the first tensor that names a letter sets it and
// every later one must agree. A number is that size itself. Allocates nothing while all is well.
class Dims {
 public:
  explicit Dims(const char* op) : op_(op) {}

  // Checks rank, dtype and sizes of one argument.
  void check(const char* name, const Tensor& t, std::initializer_list<const char*> letters,
             std::initializer_list<DType> dtypes);
  // The same, and no two elements may share an address: for outputs.
  void check_output(const char* name, const Tensor& t, std::initializer_list<const char*> letters,
                    std::initializer_list<DType> dtypes);
  std::int64_t operator[](const char* letter) const;
  [[noreturn]] void fail(const std::string& message) const;

 private:
  struct Bound {
    std::string letter;
    std::int64_t size;
    std::string owner;
  };
  const Bound* find(const std::string& letter) const;

  const char* op_;
  static constexpr int kMaxLetters = 12;
  Bound bound_[kMaxLetters];
  int letters_ = 0;
};

}  // namespace vlakern
