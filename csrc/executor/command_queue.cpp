#include "executor/command_queue.h"

#include <time.h>

#include <cerrno>
#include <cmath>

namespace vlakern::executor {

bool CommandQueue::push(const Command& command) {
  const std::uint64_t next = written_.load(std::memory_order_relaxed);
  if (next - read_.load(std::memory_order_acquire) == kSlots) return false;
  slots_[next % kSlots] = command;
  written_.store(next + 1, std::memory_order_release);
  sem_post(&some_);
  return true;
}

bool CommandQueue::pop(Command* command, double patience) {
  // sem_clockwait is newer than the C libraries that wheels must run on; a clock that jumps makes
  // this wait longer or shorter, and loses nothing.
  timespec until{};
  clock_gettime(CLOCK_REALTIME, &until);
  const double seconds = std::floor(patience);
  until.tv_sec += static_cast<time_t>(seconds);
  until.tv_nsec += static_cast<long>((patience - seconds) * 1e9);
  if (until.tv_nsec >= 1000000000) {
    until.tv_nsec -= 1000000000;
    ++until.tv_sec;
  }
  while (sem_timedwait(&some_, &until) != 0)
    if (errno != EINTR) return false;
  const std::uint64_t next = read_.load(std::memory_order_relaxed);
  *command = slots_[next % kSlots];
  read_.store(next + 1, std::memory_order_release);
  return true;
}

}  // namespace vlakern::executor
