// A small persistent thread pool, safe to use in a forked child.
//
// A worker that has done its part waits for the next job awake for kSpin microseconds, since waking
// a thread takes as long as a small op, then sleeps. A caller never waits for a worker that has not
// begun: it does the whole job itself if nobody comes.
#pragma once

#include <atomic>
#include <cstdint>

namespace vlakern {

constexpr int kSpin = 100;  // [us]

// Cores this process may run on.
int default_threads();

// Calls body(context, worker) on this thread, as worker 0, and on up to threads - 1 others, each
// with a number of its own below `threads`; returns when all that began have returned. The body
// must do the whole job also if it is called once. Only worker 0 runs when another call is using
// the pool.
void run_workers(int threads, void (*body)(const void* context, int worker), const void* context);

// Calls body(context, begin, end) over parts of [0, count), one for each of at most `threads`
// threads if they are awake.
void parallel_ranges(int threads, std::int64_t count,
                     void (*body)(const void* context, std::int64_t begin, std::int64_t end),
                     const void* context);

template <class Body>
void parallel_workers(int threads, const Body& body) {
  run_workers(
      threads,
      [](const void* context, int worker) { (*static_cast<const Body*>(context))(worker); }, &body);
}

template <class Body>
void parallel_for(int threads, std::int64_t count, const Body& body) {
  parallel_ranges(
      threads, count,
      [](const void* context, std::int64_t begin, std::int64_t end) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      &body);
}

// A part of a job that workers share unit by unit. Every unit is done when run() returns.
class Phase {
 public:
  explicit Phase(std::int64_t units = 0) : units_(units) {}

  // Begins anew; no worker may be inside.
  void reset(std::int64_t units) {
    units_ = units;
    next_.store(0, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
  }

  template <class Body>
  void run(const Body& body) {
    for (std::int64_t unit = next_++; unit < units_; unit = next_++) {
      body(unit);
      done_.fetch_add(1, std::memory_order_release);
    }
    wait();
  }

  // The same with body(unit, next): the unit that this worker does next, which it may bring near;
  // none is left if that is not below the number of units.
  template <class Body>
  void run_ahead(const Body& body) {
    for (std::int64_t unit = next_++; unit < units_;) {
      const std::int64_t next = next_++;
      body(unit, next);
      done_.fetch_add(1, std::memory_order_release);
      unit = next;
    }
    wait();
  }

 private:
  void wait() const;

  std::int64_t units_;
  std::atomic<std::int64_t> next_{0};
  std::atomic<std::int64_t> done_{0};
};

}  // namespace vlakern
