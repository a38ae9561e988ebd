#include "policy/bytes.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "common/error.h"
#include "common/huge_pages.h"

namespace vlakern {
namespace {

// An open regular file; a pipe or a device is refused and never waited for.
class File {
 public:
  explicit File(const std::string& path) : path_(path) {
    handle_ = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (handle_ < 0) {
      if (errno == ENOENT) throw InputError(path + " is missing; expected a policy directory");
      fail();
    }
    struct stat status{};
    if (::fstat(handle_, &status) != 0) fail();
    if (!S_ISREG(status.st_mode)) {
      ::close(handle_);
      throw InputError(path + " is no regular file; expected a policy directory's");
    }
    size_ = static_cast<std::size_t>(status.st_size);
  }
  ~File() { ::close(handle_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  [[noreturn]] void fail() const {
    throw InputError(path_ + " cannot be read (" + std::strerror(errno) + ")");
  }
  int handle() const { return handle_; }
  std::size_t size() const { return size_; }

 private:
  const std::string path_;
  int handle_;
  std::size_t size_ = 0;
};

}  // namespace

std::string read_file(const std::string& path, std::size_t most) {
  const File file(path);
  if (file.size() > most) {
    throw InputError(path + " is larger than " + std::to_string(most) + " bytes");
  }
  std::string content(file.size(), '\0');
  std::size_t read = 0;
  while (read < content.size()) {
    const ssize_t count = ::read(file.handle(), content.data() + read, content.size() - read);
    if (count < 0 && errno != EINTR) file.fail();
    if (count == 0) throw InputError(path + " became shorter while it was read; copy it again");
    if (count > 0) read += static_cast<std::size_t>(count);
  }
  return content;
}

MappedFile::MappedFile(const std::string& path) {
  const File file(path);
  size_ = file.size();
  if (size_ == 0) throw InputError(path + " is empty; copy it again");
  void* memory = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.handle(), 0);
  if (memory == MAP_FAILED) file.fail();
  data_ = static_cast<const unsigned char*>(memory);
}

MappedFile::~MappedFile() { ::munmap(const_cast<unsigned char*>(data_), size_); }

Block::Block(std::size_t bytes) {
  constexpr std::size_t kLineBytes = 64;
  const std::size_t whole = (bytes / kLineBytes + 1) * kLineBytes;
  data_.reset(std::aligned_alloc(kLineBytes, whole));
  if (!data_) {
    throw InputError("the engine needs " + std::to_string(whole >> 20) +
                     " MiB that are not free; build it for fewer views or tokens");
  }
  prefer_huge_pages(address(), whole);
}

void Block::Free::operator()(void* memory) const { std::free(memory); }

}  // namespace vlakern
