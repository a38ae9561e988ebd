#include "executor/chunk_buffer.h"

#include <algorithm>
#include <cmath>

#include "executor/fault_point.h"

namespace vlakern::executor {

const char* verdict_name(Verdict verdict) {
  switch (verdict) {
    case Verdict::kAccepted:
      return "accepted";
    case Verdict::kNotFinite:
      return "not_finite";
    case Verdict::kOutOfOrder:
      return "out_of_order";
    case Verdict::kExpired:
      return "expired";
    case Verdict::kFault:
      return "fault";
    case Verdict::kFull:
      return "full";
  }
  return "unknown";
}

void Chunk::at(Nanoseconds now, const std::vector<bool>& held, double* wanted) const {
  const Nanoseconds since = std::clamp<Nanoseconds>(now - begin, 0, (steps - 1) * step);
  const auto k = static_cast<std::size_t>(since / step);
  const double part = static_cast<double>(since % step) / static_cast<double>(step);
  const auto width = static_cast<std::size_t>(dims);
  const double* here = actions.data() + k * width;
  const double* next = part > 0.0 ? here + width : here;
  for (std::size_t i = 0; i < width; ++i) {
    const double rise = next[i] - here[i];
    // Two finite actions can be further apart than fp64 reaches.
    const double between =
        std::isfinite(rise) ? here[i] + part * rise : (1.0 - part) * here[i] + part * next[i];
    wanted[i] = held[i] ? here[i] : between;
  }
}

ChunkQueue::ChunkQueue(int most_steps, int dims) : slots_(kSlots) {
  for (Chunk& slot : slots_) {
    slot.actions.resize(static_cast<std::size_t>(most_steps) * static_cast<std::size_t>(dims));
    slot.dims = dims;
  }
}

bool ChunkQueue::push(const double* actions, int steps, std::uint64_t id, Nanoseconds observed,
                      Nanoseconds step) {
  const std::lock_guard<std::mutex> one_at_a_time(writing_);
  const std::uint64_t next = written_.load(std::memory_order_relaxed);
  if (next - read_.load(std::memory_order_acquire) == kSlots) return false;
  Chunk& slot = slots_[next % kSlots];
  std::copy_n(actions, static_cast<std::size_t>(steps) * static_cast<std::size_t>(slot.dims),
              slot.actions.begin());
  slot.steps = steps;
  slot.id = id;
  slot.observed = observed;
  slot.begin = observed;
  slot.step = step;
  written_.store(next + 1, std::memory_order_release);
  return true;
}

bool ChunkQueue::pop_newest(Chunk* into, std::uint64_t* dropped) {
  const std::uint64_t end = written_.load(std::memory_order_acquire);
  const std::uint64_t begin = read_.load(std::memory_order_relaxed);
  if (begin == end) return false;
  const Chunk& newest = slots_[(end - 1) % kSlots];
  // The vectors have the same size, so that this copies numbers and allocates nothing.
  std::copy(newest.actions.begin(), newest.actions.end(), into->actions.begin());
  into->steps = newest.steps;
  into->dims = newest.dims;
  into->id = newest.id;
  into->observed = newest.observed;
  into->begin = newest.begin;
  into->step = newest.step;
  VLAKERN_FAULT_POINT(kQueued, into->actions.data(), into->steps * into->dims);
  *dropped += end - begin - 1;
  read_.store(end, std::memory_order_release);
  return true;
}

std::uint64_t ChunkQueue::clear() {
  const std::uint64_t end = written_.load(std::memory_order_acquire);
  return end - read_.exchange(end, std::memory_order_acq_rel);
}

}  // namespace vlakern::executor
