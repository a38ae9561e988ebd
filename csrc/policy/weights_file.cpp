#include "policy/weights_file.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>

#include "common/error.h"
#include "common/number.h"
#include "policy/json.h"

namespace vlakern {
namespace {

constexpr std::uint64_t kMostHeader = 16u << 20;
constexpr std::size_t kMostTensors = 5000, kMostName = 512, kMostDims = 8;
constexpr std::int64_t kMostSize = std::int64_t{1} << 48;

// Bytes per value of what a file may hold; 0 for an unknown dtype.
std::int64_t size_of(const std::string& dtype) {
  static const std::map<std::string, std::int64_t> sizes{
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"I64", 8}, {"U64", 8},     {"F64", 8}};
  const auto found = sizes.find(dtype);
  return found == sizes.end() ? 0 : found->second;
}

template <class T>
T load(const unsigned char* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

std::string text(const Shape& shape) {
  std::string all;
  for (const std::int64_t n : shape) all += (all.empty() ? "" : ", ") + std::to_string(n);
  return "[" + all + "]";
}

// Values of all dimensions; -1 where they are absurd, also behind a dimension of 0.
std::int64_t values_of(const Shape& shape) {
  std::int64_t some = 1, all = 1;
  for (const std::int64_t n : shape) {
    if (n > 0 && some > kMostSize / n) return -1;
    some *= std::max<std::int64_t>(n, 1);
    all *= n;
  }
  return all;
}

}  // namespace

void WeightsFile::fail(const std::string& what) const {
  throw InputError(path_ + " is truncated or not a safetensors file (" + what + "); copy it again");
}

WeightsFile::WeightsFile(const std::string& path) : path_(path), file_(path) {
  if (file_.size() < 8) fail("it has " + std::to_string(file_.size()) + " bytes");
  const auto length = load<std::uint64_t>(file_.data());
  if (length > kMostHeader) fail("its header claims " + std::to_string(length) + " bytes");
  if (length > file_.size() - 8) fail("its header does not lie in it");
  const std::string_view content(reinterpret_cast<const char*>(file_.data()) + 8, length);
  if (content.empty() || content[0] != '{') fail("its header is not a JSON object");
  const Json header = parse_json(content, path_);
  for (const auto& [name, value] : header.fields) {
    if (name == "__metadata__") continue;
    if (name.empty() || name.size() > kMostName) fail("a tensor has no usable name");
    if (infos_.size() >= kMostTensors) fail("it holds more than 5000 tensors");
    value.only({"dtype", "shape", "data_offsets"});
    Info info{value.at("dtype").words(), {}, 0, 0};
    for (const Json& n : value.at("shape").list()) info.shape.push_back(n.count(0, kMostSize));
    const auto& offsets = value.at("data_offsets").list();
    const std::int64_t size = size_of(info.dtype), count = values_of(info.shape);
    if (size == 0 || count < 0 || info.shape.size() > kMostDims || offsets.size() != 2) {
      fail("tensor '" + name + "' is not described as it should be");
    }
    const std::uint64_t start = 8 + length;
    info.begin = start + static_cast<std::uint64_t>(offsets[0].count(0, kMostSize));
    info.end = start + static_cast<std::uint64_t>(offsets[1].count(0, kMostSize));
    if (info.end < info.begin || info.end - info.begin != static_cast<std::uint64_t>(count) *
                                                              static_cast<std::uint64_t>(size)) {
      fail("tensor '" + name + "' of shape " + text(info.shape) + " has other offsets");
    }
    infos_.emplace(name, std::move(info));
  }
  check_offsets(8 + length);
}

void WeightsFile::check_offsets(std::uint64_t at) const {
  std::vector<const Info*> all;
  for (const auto& one : infos_) all.push_back(&one.second);
  std::sort(all.begin(), all.end(), [](const Info* a, const Info* b) {
    return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
  });
  for (const Info* one : all) {
    if (one->begin != at) fail("its tensors overlap or leave a gap");
    at = one->end;
  }
  if (at != file_.size()) fail("its tensors do not end where it ends");
}

std::vector<float> WeightsFile::read(const std::string& name, const Shape& shape) {
  const auto found = infos_.find(name);
  if (found == infos_.end()) {
    throw InputError(path_ + " lacks tensor '" + name +
                     "'; it was written for another model than config.json describes");
  }
  const Info& info = found->second;
  if (info.shape != shape) {
    throw InputError(path_ + ": tensor '" + name + "' has shape " + text(info.shape) +
                     ", the model in config.json needs " + text(shape));
  }
  read_.insert(name);
  std::vector<float> values(static_cast<std::size_t>(values_of(shape)));
  const unsigned char* at = file_.data() + info.begin;
  bool finite = true;
  const auto fill = [&](auto convert, std::size_t size) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = convert(at + i * size);
      finite = finite && std::isfinite(values[i]);
    }
  };
  if (info.dtype == "F32") {
    fill([](const unsigned char* p) { return load<float>(p); }, 4);
  } else if (info.dtype == "BF16") {
    fill([](const unsigned char* p) { return to_float(bf16{load<std::uint16_t>(p)}); }, 2);
  } else if (info.dtype == "F16") {
    fill([](const unsigned char* p) { return to_float(f16{load<std::uint16_t>(p)}); }, 2);
  } else if (info.dtype == "F64") {
    fill([](const unsigned char* p) { return static_cast<float>(load<double>(p)); }, 8);
  } else {
    throw InputError(path_ + ": tensor '" + name + "' is " + info.dtype +
                     ", expected BF16, F16, F32 or F64");
  }
  if (!finite) {
    throw InputError(path_ + ": tensor '" + name + "' holds values that are not finite");
  }
  return values;
}

void WeightsFile::check_all_read() const {
  for (const auto& one : infos_) {
    if (read_.count(one.first) == 0) {
      throw InputError(path_ + " holds '" + one.first +
                       "', which is unknown; it was written for another model");
    }
  }
}

}  // namespace vlakern
