// A safetensors file: its header is checked as a whole before a tensor is touched.
//
// Layout: the header's length in 8 bytes, little-endian; the header, a JSON object of
// name: {"dtype", "shape", "data_offsets"}; the tensors' bytes, without gap or overlap.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "policy/bytes.h"

namespace vlakern {

using Shape = std::vector<std::int64_t>;

class WeightsFile {
 public:
  explicit WeightsFile(const std::string& path);

  // The tensor in fp32. InputError: it is not there, has another shape, is not floating point or
  // holds a value that is not finite.
  std::vector<float> read(const std::string& name, const Shape& shape);
  // InputError names a tensor that nobody read: the file is of another model.
  void check_all_read() const;

 private:
  struct Info {
    std::string dtype;
    Shape shape;
    std::uint64_t begin, end;  // from the file's first byte
  };
  [[noreturn]] void fail(const std::string& what) const;
  void check_offsets(std::uint64_t begin) const;

  std::string path_;
  MappedFile file_;
  std::map<std::string, Info> infos_;
  std::set<std::string> read_;
};

}  // namespace vlakern
