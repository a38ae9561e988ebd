// Files that anyone may have written: regular, bounded, mapped where they are large.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace vlakern {

// The content of a regular file of at most `most` bytes. InputError says what is wrong.
std::string read_file(const std::string& path, std::size_t most);

// A file in memory that is read where it is touched.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const unsigned char* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  const unsigned char* data_ = nullptr;
  std::size_t size_ = 0;
};

// Memory that begins on a cache line, its content undefined; large pages where the system has them.
class Block {
 public:
  Block() = default;
  explicit Block(std::size_t bytes);

  std::uintptr_t address() const { return reinterpret_cast<std::uintptr_t>(data_.get()); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(void* memory) const;
  };
  std::unique_ptr<void, Free> data_;
};

}  // namespace vlakern
