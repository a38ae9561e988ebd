// A GPU's warps on a host, for warp programs (common/warp.h): each warp is a thread, which does the
// work of its 32 lanes one after the other; blocks and the grid are as many threads as they have
// warps, that really wait for each other. What a GPU leaves open is varied: the order of lanes, and
// when a copy is made between its beginning and the wait for it.
#pragma once

#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <mutex>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "common/warp.h"

namespace vlakern::tests {

// What a mistake would look like, to show that it is noticed.
enum class Mistake { kNone, kNoWait, kNoSync, kNoMeeting };

class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}
  void wait() {
    std::unique_lock lock(mutex_);
    const std::uint64_t turn = turn_;
    if (++come_ == count_) {
      come_ = 0;
      ++turn_;
      all_.notify_all();
      return;
    }
    all_.wait(lock, [&] { return turn != turn_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  const int count_;
  int come_ = 0;
  std::uint64_t turn_ = 0;
};

struct HostBlock {
  HostBlock(int warps, std::size_t bytes) : barrier(warps), shared(bytes / sizeof(Words)) {
    std::memset(shared.data(), 0xff, bytes);  // NaN
  }
  Barrier barrier;
  std::vector<Words> shared;
};

struct HostGrid {
  int blocks;
  int warps;  // of a block
  std::size_t shared;
  std::uint32_t seed;
  Mistake mistake = Mistake::kNone;
};

class HostWarp {
 public:
  template <class T>
  struct Lanes {
    T of[kLanes];
    T& operator[](int lane) { return of[lane]; }
    const T& operator[](int lane) const { return of[lane]; }
  };

  HostWarp(const HostGrid& grid, HostBlock& own, int block, int warp)
      : grid_(grid), own_(own), block_(block), warp_(warp) {
    random_.seed(grid.seed * 1000003u + static_cast<unsigned>(block * grid.warps + warp));
  }

  template <class F>
  void each(F f) {
    const bool forward = random_() % 2 != 0;
    for (int i = 0; i < kLanes; ++i) f(forward ? i : kLanes - 1 - i);
  }
  int block() const { return block_; }
  int blocks() const { return grid_.blocks; }
  int warp() const { return warp_; }
  unsigned char* shared() const { return reinterpret_cast<unsigned char*>(own_.shared.data()); }
  void sync() {
    if (grid_.mistake != Mistake::kNoSync) own_.barrier.wait();
  }

  void copy16(int, void* to, const void* from, bool valid) {
    const Copy copy{to, from, valid};
    if (random_() % 2 != 0) {
      make(copy);
    } else {
      open_.push_back(copy);
    }
  }
  void commit() {
    groups_.push_back(std::move(open_));
    open_.clear();
  }
  void wait(int pending) {
    if (pending > 7) throw std::logic_error("more groups than a GPU's wait is written for");
    if (grid_.mistake == Mistake::kNoWait) return;
    while (groups_.size() > static_cast<std::size_t>(pending)) {
      for (const Copy& copy : groups_.front()) make(copy);
      groups_.pop_front();
    }
  }

  void join() const {}
  // k and column of each value as the instruction defines them, element by element.
  void mma(Lanes<Sums>& sums, const Lanes<Left>& left, const Lanes<Right>& right) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = row_of(lane), c = column_of(lane);
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 2; ++j) {
          a[g + i % 2 * 8][2 * c + i / 2 * 8 + j] = half(left[lane].r[i], j);
          if (i < 2) b[2 * c + i * 8 + j][g] = half(right[lane].r[i], j);
        }
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = row_of(lane) + i / 2 * 8, column = 2 * column_of(lane) + i % 2;
        float sum = sums[lane].c[i];
        for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
        sums[lane].c[i] = sum;
      }
    }
  }
  Lanes<float> swap(const Lanes<float>& v, int mask) const {
    Lanes<float> found;
    for (int lane = 0; lane < kLanes; ++lane) found[lane] = v[lane ^ mask];
    return found;
  }

  Words load16(const void* p) const {
    if (reinterpret_cast<std::uintptr_t>(p) % 16 != 0) throw std::logic_error("a load is crooked");
    Words found;
    std::memcpy(&found, p, sizeof found);
    return found;
  }
  std::uint16_t load2(const std::uint16_t* p) const { return *p; }
  float load4(const float* p) const { return *p; }

  std::uint32_t arrive(std::uint32_t* counter, std::uint32_t count) {
    return __atomic_fetch_add(counter, count, __ATOMIC_ACQ_REL);
  }
  std::uint32_t acquire(const std::uint32_t* counter) {
    if (grid_.mistake == Mistake::kNoMeeting)
      return reads_++ % 2 == 0 ? ~0u : 0u;  // one of them ends it
    return __atomic_load_n(counter, __ATOMIC_ACQUIRE);
  }
  void pause(std::uint32_t spins) const {
    if (spins < 4) return std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::microseconds(50));  // others have work to do
  }

  float exp2(float x) const { return std::exp2(x); }
  float rsqrt(float x) const { return 1.0f / std::sqrt(x); }

 private:
  struct Copy {
    void* to;
    const void* from;
    bool valid;
  };

  static float half(std::uint32_t pair, int which) {
    return wide(static_cast<std::uint16_t>(which == 0 ? pair & 0xffffu : pair >> 16));
  }
  void make(const Copy& copy) const {
    if ((reinterpret_cast<std::uintptr_t>(copy.to) | reinterpret_cast<std::uintptr_t>(copy.from)) %
            16 !=
        0) {
      throw std::logic_error("a copy is crooked");
    }
    const Words found = copy.valid ? load16(copy.from) : Words{};
    std::memcpy(copy.to, &found, sizeof found);
  }

  const HostGrid& grid_;
  HostBlock& own_;
  const int block_, warp_;
  std::minstd_rand random_;
  unsigned reads_ = 0;
  std::vector<Copy> open_;
  std::deque<std::vector<Copy>> groups_;
};

// program(HostWarp&) on every warp of a grid, all at once.
template <class Program>
void run_grid(const HostGrid& grid, Program program) {
  std::deque<HostBlock> blocks;
  for (int i = 0; i < grid.blocks; ++i) blocks.emplace_back(grid.warps, grid.shared);
  std::vector<std::thread> threads;
  for (int block = 0; block < grid.blocks; ++block) {
    for (int warp = 0; warp < grid.warps; ++warp) {
      threads.emplace_back([&, block, warp] {
        HostWarp w(grid, blocks[static_cast<std::size_t>(block)], block, warp);
        program(w);
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace vlakern::tests
