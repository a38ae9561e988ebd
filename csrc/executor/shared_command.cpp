#include "executor/shared_command.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <new>

#include "common/error.h"

namespace vlakern::executor {

namespace {

constexpr int kTries = 1000;
constexpr auto kLastState = static_cast<std::uint64_t>(State::kFault);

std::uint64_t bits_of(double value) {
  std::uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

double number_of(std::uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

std::string path_of(const std::string& name) {
  if (name.empty() || name.size() > 100 || name.find('/') != std::string::npos || name[0] == '.')
    throw InputError("shared memory is called '" + name + "', expected a file name without '/'");
  return "/" + name;
}

[[noreturn]] void refuse(const std::string& name, const std::string& reason) {
  throw UnsupportedError("shared memory '" + name + "' cannot be used: " + reason);
}

SharedLayout* map_segment(const std::string& name, SharedCommand::Side side) {
  const bool writes = side == SharedCommand::Side::kWriter;
  const std::string path = path_of(name);
  const int flags = writes ? O_RDWR | O_CREAT | O_EXCL : O_RDONLY;
  const int file = shm_open(path.c_str(), flags, 0600);
  if (file < 0) {
    refuse(name, writes && errno == EEXIST
                     ? "it exists; another executor writes it, or one that was killed left it:"
                       " remove /dev/shm" +
                           path
                     : std::strerror(errno));
  }
  int error = 0;
  if (writes && ftruncate(file, sizeof(SharedLayout)) != 0) error = errno;
  struct stat facts{};
  if (error == 0 && fstat(file, &facts) != 0) error = errno;
  const bool fits = facts.st_size == static_cast<off_t>(sizeof(SharedLayout));
  void* memory = MAP_FAILED;
  if (error == 0 && fits) {
    const int access = writes ? PROT_READ | PROT_WRITE : PROT_READ;
    memory = mmap(nullptr, sizeof(SharedLayout), access, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) error = errno;
  }
  close(file);
  if (memory == MAP_FAILED) {
    if (writes) shm_unlink(path.c_str());
    refuse(name, error != 0 ? std::strerror(error) : "it has another size");
  }
  // Fresh pages are zero, which is what the words begin with.
  return static_cast<SharedLayout*>(memory);
}

}  // namespace

SharedCommand::SharedCommand(const std::string& name, Side side)
    : name_(name), side_(side), layout_(map_segment(name, side)) {
  if (side == Side::kWriter) {
    layout_->magic.store(SharedLayout::kMagic, std::memory_order_release);
  } else if (layout_->magic.load(std::memory_order_acquire) != SharedLayout::kMagic) {
    munmap(layout_, sizeof(SharedLayout));
    refuse(name, "another program's memory, or another version's");
  }
}

SharedCommand::~SharedCommand() {
  munmap(layout_, sizeof(SharedLayout));
  if (side_ == Side::kWriter) shm_unlink(path_of(name_).c_str());
}

void SharedCommand::write(const Command& command) {
  const std::uint64_t version = layout_->version.load(std::memory_order_relaxed);
  layout_->version.store(version + 1, std::memory_order_relaxed);
  // Whoever reads one of these words sees the odd version, too.
  const auto put = [this](int i, std::uint64_t word) {
    layout_->words[i].store(word, std::memory_order_release);
  };
  put(0, command.tick);
  put(1, static_cast<std::uint64_t>(command.time));
  put(2, command.chunk);
  put(3,
      static_cast<std::uint64_t>(command.state) << 32 | static_cast<std::uint64_t>(command.dims));
  for (int i = 0; i < command.dims; ++i) {
    put(4 + i, bits_of(command.position[i]));
    put(4 + kMostDims + i, bits_of(command.velocity[i]));
  }
  layout_->version.store(version + 2, std::memory_order_release);
}

bool SharedCommand::read(Command* command) const {
  for (int attempt = 0; attempt < kTries; ++attempt) {
    const std::uint64_t before = layout_->version.load(std::memory_order_acquire);
    if (before == 0) return false;
    std::uint64_t words[SharedLayout::kWords];
    for (int i = 0; i < SharedLayout::kWords; ++i)
      words[i] = layout_->words[i].load(std::memory_order_acquire);
    if (before % 2 != 0 || layout_->version.load(std::memory_order_relaxed) != before) continue;
    const auto dims = static_cast<int>(words[3] & 0xffffffff);
    if (dims < 0 || dims > kMostDims || words[3] >> 32 > kLastState) return false;
    command->tick = words[0];
    command->time = static_cast<Nanoseconds>(words[1]);
    command->chunk = words[2];
    command->state = static_cast<State>(words[3] >> 32);
    command->dims = dims;
    for (int i = 0; i < dims; ++i) {
      command->position[i] = number_of(words[4 + i]);
      command->velocity[i] = number_of(words[4 + kMostDims + i]);
      // Nobody writes such a number: something else has written into the segment.
      if (!std::isfinite(command->position[i]) || !std::isfinite(command->velocity[i]))
        return false;
    }
    return true;
  }
  return false;
}

}  // namespace vlakern::executor
