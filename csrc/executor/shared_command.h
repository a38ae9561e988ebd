// The newest command in shared memory, for a robot driver in another process.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "core.h"

namespace vlakern::executor {

// What lies in the segment; all words are atomic, so that a torn read is seen and repeated.
struct SharedLayout {
  static constexpr std::uint64_t kMagic = 0x31646d636b6c7600;  // "\0vlkcmd1"
  static constexpr int kWords = 4 + 2 * kMostDims;
  std::atomic<std::uint64_t> magic;
  std::atomic<std::uint64_t> version;        // odd while a command is being written
  std::atomic<std::uint64_t> words[kWords];  // tick, time, chunk, state and dims, then numbers
};

// Creates or opens the segment `/dev/shm/NAME`.
class SharedCommand {
 public:
  enum class Side { kWriter, kReader };

  // Raises InputError for a name that is no file name, UnsupportedError where the segment is taken,
  // missing or of another layout.
  SharedCommand(const std::string& name, Side side);
  // The writer removes the segment.
  ~SharedCommand();
  SharedCommand(const SharedCommand&) = delete;
  SharedCommand& operator=(const SharedCommand&) = delete;

  static int send(void* shared, const Command& command) {
    static_cast<SharedCommand*>(shared)->write(command);
    return 0;
  }
  void write(const Command& command);
  // The newest command; false before the first one, where the writer is always in the way, or for
  // what no executor writes: numbers that are not finite, another state.
  bool read(Command* command) const;

 private:
  std::string name_;
  Side side_;
  SharedLayout* layout_;
};

}  // namespace vlakern::executor
