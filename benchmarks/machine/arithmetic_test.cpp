// Host test of arithmetic.h; prints "sound" and exits 0, or says what is wrong.
#include "arithmetic.h"

#include <cmath>
#include <cstdio>
#include <vector>

namespace {

int wrong = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("wrong: %s\n", what);
  ++wrong;
}

bool near(double a, double b) { return std::fabs(a - b) <= 1e-9 * std::fabs(b) + 1e-15; }

// Every word of a buffer is read exactly once, and none beyond the turns that are made.
void covers(std::int64_t words, std::int64_t blocks, int unroll) {
  std::vector<int> reads(static_cast<std::size_t>(words), 0);
  bool adjacent = true;
  const std::int64_t turns = machine::turns_for(words, blocks, unroll);
  for (std::int64_t turn = 0; turn < turns; ++turn)
    for (std::int64_t block = 0; block < blocks; ++block)
      for (int load = 0; load < unroll; ++load) {
        const std::int64_t first = machine::word_of(turn, blocks, block, unroll, load, 0);
        for (int thread = 0; thread < machine::kThreads; ++thread) {
          const std::int64_t word = machine::word_of(turn, blocks, block, unroll, load, thread);
          adjacent = adjacent && word == first + thread;
          if (word < words) ++reads[static_cast<std::size_t>(word)];
        }
      }
  bool once = true;
  for (int count : reads) once = once && count == 1;
  expect(once, "a word is read not once");
  expect(adjacent, "the words of a warp are not adjacent");
}

}  // namespace

int main() {
  for (std::int64_t words : {1, 255, 2048, 2049, 10000, 65536})
    for (std::int64_t blocks : {1, 2, 7})
      for (int unroll : {1, 2, 8}) covers(words, blocks, unroll);
  expect(machine::turns_for(0, 3, 8) == 0, "nothing needs a turn");
  expect(machine::blocks_for(1, 8, 100) == 1, "a byte needs one block");
  expect(machine::blocks_for(4096 * 8 + 1, 8, 100) == 2, "a tile and a byte need two");
  expect(machine::blocks_for(4096 * 1000, 1, 100) == 100, "no more blocks than allowed");

  for (std::int64_t count : {1, 2, 3, 64}) {
    const std::int64_t bytes = 4096, buffer = 1 << 20;
    std::int64_t before = -bytes;
    bool apart = true;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t begin = machine::window_begin(i, count, bytes, buffer);
      apart = apart && begin - before >= bytes && begin % 256 == 0 && begin + bytes <= buffer;
      before = begin;
    }
    expect(apart, "windows overlap, are not aligned or leave the buffer");
  }

  expect(machine::median({3, 1, 2}) == 2 && machine::median({4, 1, 2, 3}) == 2.5, "median");
  expect(machine::median({}) == 0, "median of nothing");
  expect(near(machine::slope(100, 5e-6, 1100, 1005e-6), 1e-6), "slope");

  const std::vector<double> bytes = {65536, 1048576, 16777216, 268435456};
  std::vector<double> seconds;
  for (double size : bytes) seconds.push_back(1.85e-6 + size / 2.77e12);
  const machine::Line line = machine::fit(bytes, seconds);
  expect(near(line.fixed, 1.85e-6) && near(line.rate, 2.77e12), "fit of a line");
  const machine::Line flat = machine::fit({1, 2, 3}, {1e-6, 1e-6, 1e-6});
  expect(near(flat.fixed, 1e-6) && (flat.rate == 0 || flat.rate > 1e15), "fit of a constant");
  const machine::Line point = machine::fit({5}, {2e-6});
  expect(near(point.fixed, 2e-6) && point.rate == 0, "fit of one point");

  if (wrong == 0) std::printf("sound\n");
  return wrong == 0 ? 0 : 1;
}
