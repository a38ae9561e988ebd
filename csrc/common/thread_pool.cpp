#include "common/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace vlakern {
namespace {

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Awake for a while, then the processor is left to whoever it is that is waited for.
template <class Ready>
void wait_awake(const Ready& ready) {
  for (int i = 0; !ready(); ++i) {
    if (i < 4096) {
      pause();
    } else {
      sched_yield();
    }
  }
}

struct Job {
  void (*body)(const void*, int) = nullptr;
  const void* context = nullptr;
  int threads = 0;
  std::uint64_t generation = 0;
};

class Pool {
 public:
  // Returns false if another thread is using the pool.
  bool run(Job job) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) return false;
    while (workers_ < job.threads - 1 && start_worker(workers_ + 1)) ++workers_;
    job.generation = generation_.load(std::memory_order_relaxed) + 1;
    job_ = job;
    inside_.store(0, std::memory_order_release);
    generation_.store(job.generation);
    if (sleeping_.load() > 0) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
      }
      wake_.notify_all();
    }
    job.body(job.context, 0);
    inside_.fetch_or(kClosed);
    wait_awake([this] { return inside_.load(std::memory_order_acquire) == kClosed; });
    return true;
  }

 private:
  static constexpr int kClosed = 1 << 30;

  bool start_worker(int number) {
    try {
      std::thread([this, number] { work(number); }).detach();
    } catch (const std::system_error&) {
      return false;
    }
    return true;
  }

  // A job is read between entering and leaving, while the caller may not change it.
  bool enter() {
    int count = inside_.load(std::memory_order_relaxed);
    while ((count & kClosed) == 0) {
      if (inside_.compare_exchange_weak(count, count + 1, std::memory_order_acquire)) return true;
    }
    return false;
  }

  void work(int number) {
    for (std::uint64_t seen = 0;;) {
      wait_for_other_than(seen);
      seen = generation_.load();
      if (!enter()) continue;
      seen = job_.generation;
      if (number < job_.threads) job_.body(job_.context, number);
      inside_.fetch_sub(1, std::memory_order_release);
    }
  }

  void wait_for_other_than(std::uint64_t seen) {
    using Clock = std::chrono::steady_clock;
    const auto end = Clock::now() + std::chrono::microseconds(kSpin);
    do {
      for (int i = 0; i < 64; ++i) {
        if (generation_.load(std::memory_order_acquire) != seen) return;
        pause();
      }
    } while (Clock::now() < end);
    std::unique_lock<std::mutex> lock(mutex_);
    ++sleeping_;
    wake_.wait(lock, [&] { return generation_.load() != seen; });
    --sleeping_;
  }

  std::mutex turn_;
  std::mutex mutex_;
  std::condition_variable wake_;
  Job job_;
  int workers_ = 0;
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<int> inside_{kClosed};  // how many run the job, and whether more may
  std::atomic<int> sleeping_{0};
};

std::atomic<Pool*> shared_pool{nullptr};

// The child of a fork has none of the parent's workers and may hold its locks: it starts afresh,
// and the parent's pool is left untouched in memory.
Pool& pool() {
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { shared_pool.store(nullptr); });
  static_cast<void>(registered);
  Pool* current = shared_pool.load();
  if (current == nullptr) {
    Pool* fresh = new Pool;
    if (shared_pool.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;
  }
  return *current;
}

}  // namespace

int default_threads() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

void run_workers(int threads, void (*body)(const void*, int), const void* context) {
  if (threads > 1 && pool().run({body, context, threads, 0})) return;
  body(context, 0);
}

void parallel_ranges(int threads, std::int64_t count,
                     void (*body)(const void*, std::int64_t, std::int64_t), const void* context) {
  const std::int64_t parts = std::min<std::int64_t>(threads, count);
  if (parts <= 1) {
    if (count > 0) body(context, 0, count);
    return;
  }
  Phase phase(parts);
  parallel_workers(static_cast<int>(parts), [&](int) {
    phase.run([&](std::int64_t part) {
      body(context, count * part / parts, count * (part + 1) / parts);
    });
  });
}

void Phase::wait() const {
  wait_awake([this] { return done_.load(std::memory_order_acquire) >= units_; });
}

}  // namespace vlakern
