#include "executor/realtime.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>

#include <cerrno>
#include <cstring>

namespace vlakern::executor {

namespace {

constexpr Nanoseconds kSecond = 1000000000;

std::string said(const std::string& wish, int error, const std::string& otherwise) {
  if (error == 0) return wish + ": granted";
  return wish + ": refused (" + std::strerror(error) + "); " + otherwise;
}

}  // namespace

Nanoseconds monotonic_now() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * kSecond + now.tv_nsec;
}

void sleep_until(Nanoseconds time) {
  const timespec until{static_cast<time_t>(time / kSecond), static_cast<long>(time % kSecond)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) == EINTR) {
  }
}

std::vector<std::string> apply(const Realtime& wish) {
  std::vector<std::string> statements;
  if (wish.lock_memory) {
    const int error = mlockall(MCL_CURRENT | MCL_FUTURE) == 0 ? 0 : errno;
    statements.push_back(said("locked memory", error, "a page fault may delay a tick"));
  }
  if (wish.cpu >= 0) {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    int error = EINVAL;
    if (wish.cpu < CPU_SETSIZE) {
      CPU_SET(wish.cpu, &cores);
      error = pthread_setaffinity_np(pthread_self(), sizeof cores, &cores);
    }
    statements.push_back(
        said("core " + std::to_string(wish.cpu), error, "the thread may move between cores"));
  }
  if (wish.priority > 0) {
    sched_param parameters{};
    parameters.sched_priority = wish.priority;
    const int error = pthread_setschedparam(pthread_self(), SCHED_FIFO, &parameters);
    statements.push_back(said("SCHED_FIFO priority " + std::to_string(wish.priority), error,
                              "other threads may delay a tick"));
  }
  return statements;
}

}  // namespace vlakern::executor
