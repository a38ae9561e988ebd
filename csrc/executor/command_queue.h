// Commands on their way from the control thread to a thread that may be slow, such as Python's.
#pragma once

#include <semaphore.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "core.h"

namespace vlakern::executor {

// One thread writes and never waits, one thread reads. A reader that falls a whole queue behind is
// a failure of the sink.
class CommandQueue {
 public:
  CommandQueue() : slots_(kSlots) { sem_init(&some_, 0, 0); }
  ~CommandQueue() { sem_destroy(&some_); }
  CommandQueue(const CommandQueue&) = delete;
  CommandQueue& operator=(const CommandQueue&) = delete;

  static int send(void* queue, const Command& command) {
    return static_cast<CommandQueue*>(queue)->push(command) ? 0 : 1;
  }
  bool push(const Command& command);
  // The next command, waiting for it at most `patience` [s]; false if there is none.
  bool pop(Command* command, double patience);

 private:
  static constexpr std::uint64_t kSlots = 256;

  std::vector<Command> slots_;
  std::atomic<std::uint64_t> written_{0}, read_{0};
  sem_t some_;
};

}  // namespace vlakern::executor
