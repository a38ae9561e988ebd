// The clock, and what the operating system grants a control thread.
#pragma once

#include <string>
#include <vector>

#include "chunk_buffer.h"

namespace vlakern::executor {

// CLOCK_MONOTONIC, which is Python's time.monotonic_ns().
Nanoseconds monotonic_now();
// Sleeps until that time; returns at once where it has passed.
void sleep_until(Nanoseconds time);

struct Realtime {
  int priority = 0;          // of SCHED_FIFO, 1 to 99; 0 asks for none
  int cpu = -1;              // the core to stay on; -1 for any
  bool lock_memory = false;  // keep all memory of the process resident
};

// Applies it to the calling thread; a sentence for each wish, granted or refused.
std::vector<std::string> apply(const Realtime& wish);

}  // namespace vlakern::executor
