#include "linear/linear_limits.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "common/thread_pool.h"
#include "linear/linear_tile.h"

namespace vlakern {
namespace {

constexpr std::int64_t kPiece = 1 << 22;  // bytes that a thread moves at a time, at most
constexpr std::int64_t kTurns = 25000;    // of a loop that keeps every unit busy
constexpr std::int64_t kLoops = 8;  // of each thread: one that comes late leaves some to others

int threads_or_all(int threads) { return threads > 0 ? threads : default_threads(); }

template <class Body>
double seconds(int threads, std::int64_t units, const Body& body) {
  using Clock = std::chrono::steady_clock;
  Phase phase(units);
  const auto begin = Clock::now();
  parallel_workers(threads, [&](int) { phase.run(body); });
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Four streams of words, so that no addition waits for another.
std::uint64_t read_piece(const std::uint64_t* words, std::int64_t count) {
  std::uint64_t sum[8] = {};
  for (std::int64_t i = 0; i + 8 <= count; i += 8) {
    for (int j = 0; j < 8; ++j) sum[j] += words[i + j];
  }
  for (int j = 1; j < 8; ++j) sum[0] += sum[j];
  return sum[0];
}

// Bytes per second of body(begin, size) over pieces of whole lines, one for each thread at least.
template <class Body>
double rate(std::int64_t bytes, int threads, const Body& body) {
  const int workers = threads_or_all(threads);
  const std::int64_t share = ((bytes + workers - 1) / workers + 63) / 64 * 64;
  const std::int64_t piece = std::clamp<std::int64_t>(share, 64, kPiece);
  const double taken = seconds(workers, (bytes + piece - 1) / piece, [&](std::int64_t unit) {
    body(unit * piece, std::min(piece, bytes - unit * piece));
  });
  return static_cast<double>(bytes) / taken;
}

}  // namespace

double peak_rate(const std::string& kind, const std::string& isa, int threads) {
  const LinearVariant variant{linear_kind(kind), DType::kF32, DType::kF32, Activation::kNone};
  const LinearKernels kernels = linear_kernels(select_isa(isa), variant);
  if (kernels.busy == nullptr) return 0;
  const int workers = threads_or_all(threads);
  std::atomic<std::int64_t> operations{0};
  const double taken =
      seconds(workers, workers * kLoops, [&](std::int64_t) { operations += kernels.busy(kTurns); });
  return static_cast<double>(operations.load()) / taken;
}

double read_rate(std::uintptr_t address, std::int64_t bytes, int threads) {
  std::atomic<std::uint64_t> sink{0};
  return rate(bytes, threads, [&](std::int64_t begin, std::int64_t size) {
    sink += read_piece(reinterpret_cast<const std::uint64_t*>(address + begin), size / 8);
  });
}

double write_rate(std::uintptr_t address, std::int64_t bytes, int threads) {
  return rate(bytes, threads, [&](std::int64_t begin, std::int64_t size) {
    std::memset(reinterpret_cast<void*>(address + begin), 1, size);
  });
}

}  // namespace vlakern
