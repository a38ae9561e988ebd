#include "common/tensor.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "common/error.h"

namespace vlakern {
namespace {

struct DTypeRow {
  DType dtype;
  const char* name;
  int size;
};

constexpr DTypeRow kDTypes[] = {{DType::kF32, "float32", 4}, {DType::kBF16, "bfloat16", 2},
                                {DType::kF16, "float16", 2}, {DType::kI32, "int32", 4},
                                {DType::kU8, "uint8", 1},    {DType::kI64, "int64", 8}};

template <class Range>
std::string join(const Range& words, const char* separator) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : separator) + std::string(word);
  return text;
}

std::string shape_text(const Tensor& t) {
  std::vector<std::string> sizes;
  for (int i = 0; i < t.rank; ++i) sizes.push_back(std::to_string(t.shape[i]));
  return "[" + join(sizes, ", ") + "]";
}

// Sufficient and simple: sorted by stride, each dimension steps over all the smaller ones.
bool overlaps_itself(const Tensor& t) {
  std::pair<std::int64_t, std::int64_t> steps[kMaxRank];
  int count = 0;
  for (int i = 0; i < t.rank; ++i) {
    if (t.shape[i] == 0) return false;
    if (t.shape[i] > 1) {
      const std::pair step{t.stride[i] < 0 ? -t.stride[i] : t.stride[i], t.shape[i]};
      int at = count++;
      for (; at > 0 && step < steps[at - 1]; --at) steps[at] = steps[at - 1];
      steps[at] = step;
    }
  }
  std::int64_t reach = 0;
  for (int i = 0; i < count; ++i) {
    if (steps[i].first <= reach) return true;
    reach += steps[i].first * (steps[i].second - 1);
  }
  return false;
}

}  // namespace

const char* dtype_name(DType dtype) { return kDTypes[static_cast<int>(dtype)].name; }

int dtype_size(DType dtype) { return kDTypes[static_cast<int>(dtype)].size; }

DType dtype_from_name(const char* name) {
  if (std::strcmp(name, "bool") == 0) return DType::kU8;
  for (const DTypeRow& row : kDTypes) {
    if (std::strcmp(name, row.name) == 0) return row.dtype;
  }
  throw InputError(std::string("dtype ") + name + " is not one that native code takes");
}

void Dims::fail(const std::string& message) const {
  throw InputError(std::string(op_) + ": " + message);
}

const Dims::Bound* Dims::find(const std::string& letter) const {
  for (int i = 0; i < letters_; ++i) {
    if (bound_[i].letter == letter) return bound_ + i;
  }
  return nullptr;
}

void Dims::check(const char* name, const Tensor& t, std::initializer_list<const char*> letters,
                 std::initializer_list<DType> dtypes) {
  const auto pattern = [&letters] { return "[" + join(letters, ", ") + "]"; };
  if (t.rank != static_cast<int>(letters.size())) {
    fail(std::string(name) + " must be " + pattern() + ", got shape " + shape_text(t));
  }
  if (std::find(dtypes.begin(), dtypes.end(), t.dtype) == dtypes.end()) {
    std::vector<std::string> names;
    for (DType d : dtypes) names.push_back(dtype_name(d));
    fail(std::string(name) + " must be " + join(names, " or ") + ", got " + dtype_name(t.dtype));
  }
  std::int64_t count = 1;
  int i = 0;
  for (const char* letter : letters) {
    const std::int64_t size = t.shape[i++];
    count *= size;
    if (size < 0) fail(std::string(name) + " has a negative size in shape " + shape_text(t));
    if (std::isdigit(static_cast<unsigned char>(letter[0])) != 0) {
      if (size != std::atoi(letter))
        fail(std::string(name) + " must be " + pattern() + ", got " + shape_text(t));
    } else if (const Bound* b = find(letter)) {
      if (b->size != size) {
        fail(std::string(name) + " must be " + pattern() + " with " + letter + "=" +
             std::to_string(b->size) + " as in " + b->owner + ", got shape " + shape_text(t));
      }
    } else {
      if (letters_ == kMaxLetters) fail("more sizes than can be named");
      bound_[letters_++] = {letter, size, name};
    }
  }
  if (t.data == 0 && count > 0) fail(std::string(name) + " has a null pointer");
  if (t.data % dtype_size(t.dtype) != 0) fail(std::string(name) + " is not aligned to its dtype");
}

void Dims::check_output(const char* name, const Tensor& t,
                        std::initializer_list<const char*> letters,
                        std::initializer_list<DType> dtypes) {
  check(name, t, letters, dtypes);
  if (overlaps_itself(t)) fail(std::string(name) + " is written, but its elements share memory");
}

std::int64_t Dims::operator[](const char* letter) const {
  const Bound* b = find(letter);
  if (b == nullptr) fail(std::string("no argument sets ") + letter);
  return b->size;
}

}  // namespace vlakern
