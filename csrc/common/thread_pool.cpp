#include "common/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace vlakern {
namespace {

struct Job {
  void (*body)(const void*, std::int64_t, std::int64_t) = nullptr;
  const void* context = nullptr;
  std::int64_t count = 0;
  int parts = 0;

  void run(int part) const {
    const std::int64_t begin = count * part / parts;
    const std::int64_t end = count * (part + 1) / parts;
    if (begin < end) body(context, begin, end);
  }
};

class Pool {
 public:
  // Returns false if another thread is using the pool or no thread can be started.
  bool run(const Job& job) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (workers_ < job.parts - 1) {
        if (!start_worker(workers_ + 1)) return false;
        ++workers_;
      }
      job_ = job;
      pending_ = job.parts - 1;
      ++generation_;
    }
    wake_.notify_all();
    job.run(0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return pending_ == 0; });
    return true;
  }

 private:
  bool start_worker(int part) {
    try {
      std::thread([this, part, seen = generation_] { work(part, seen); }).detach();
    } catch (const std::system_error&) {
      return false;
    }
    return true;
  }

  void work(int part, std::uint64_t seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (part >= job_.parts) continue;
      const Job job = job_;
      lock.unlock();
      job.run(part);
      lock.lock();
      if (--pending_ == 0) done_.notify_one();
    }
  }

  std::mutex turn_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  Job job_;
  int workers_ = 0;
  int pending_ = 0;
  std::uint64_t generation_ = 0;
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

void parallel_ranges(int threads, std::int64_t count,
                     void (*body)(const void*, std::int64_t, std::int64_t), const void* context) {
  const Job job{body, context, count, static_cast<int>(std::min<std::int64_t>(threads, count))};
  if (job.parts > 1 && pool().run(job)) return;
  if (count > 0) body(context, 0, count);
}

}  // namespace vlakern
