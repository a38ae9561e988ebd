#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/thread_pool.h"
#include "linear/linear_job.h"

namespace vlakern {
namespace {

constexpr std::int64_t kPackSteps = 128;  // of x that a worker packs at a time
constexpr float kTiny = 1e-30f;           // rows below it are all zeros to int8

const char* at(const void* base, std::int64_t elements, DType dtype) {
  return static_cast<const char*>(base) + elements * dtype_size(dtype);
}

void scale_row(const LinearJob& job, std::int64_t row) {
  const LinearParams& p = job.p;
  float taint = 0;
  const float most = job.plan.kernels.largest(at(p.x, row * p.x_stride, p.x_dtype), p.k, &taint);
  job.scale[row] = (most > kTiny ? most / 127.0f : 0.0f) + taint;
  job.inverse[row] = most > kTiny ? 127.0f / most : 0.0f;
  job.start[row] = 0;
}

void pack(const LinearJob& job, std::int64_t unit) {
  const LinearParams& p = job.p;
  const std::int64_t block = unit % job.plan.blocks;
  const std::int64_t row = block_row(p, job.plan, block);
  LinearPack a{};
  a.x = at(p.x, row * p.x_stride, p.x_dtype);
  a.x_stride = p.x_stride;
  a.k = p.k;
  a.rows = static_cast<int>(block_row(p, job.plan, block + 1) - row);
  a.step0 = unit / job.plan.blocks * kPackSteps;
  a.steps = std::min(kPackSteps, p.steps - a.step0);
  a.packed = job.x + (row * p.steps + a.step0 * a.rows) * job.plan.kernels.x_size;
  a.inverse = job.inverse + row;
  a.start = job.start + row;
  job.plan.kernels.pack(a);
}

constexpr std::int64_t kFar = 8 << 10;  // bytes before a stream's reader that memory needs

// What the tiles of a block bring near: a line and the one `gap` bytes on, `step` bytes further at
// each step of K.
struct Ahead {
  const char* first;
  std::int64_t gap;
  std::int64_t step;
};

// A block alone reads ahead in its own stream. Of several the last two each bring half of the next
// pair's slab, so that the first block finds it there and memory is asked evenly.
Ahead ahead_of(const LinearJob& job, std::int64_t blocks_left, std::int64_t pair, std::int64_t s0,
               std::int64_t s1) {
  const char* slab = job.p.panels + (pair * job.p.steps + s0) * kStep;
  if (job.plan.blocks == 1) return {slab + kFar, kLine, kStep};
  if (blocks_left > 2 || pair + 1 >= job.p.pairs) return {slab, 0, 0};
  const char* next = slab + job.p.steps * kStep;
  return {blocks_left == 2 ? next : next + (s1 - s0) * kLine, 0, kLine};
}

// Steps [s0, s1) of one block of rows and one pair.
void multiply(const LinearJob& job, std::int64_t block, std::int64_t pair, std::int64_t s0,
              std::int64_t s1, char* tile, const Ahead& ahead) {
  const LinearParams& p = job.p;
  const LinearPlan& plan = job.plan;
  const std::int64_t row = block_row(p, plan, block);
  const char* w = p.panels + pair * p.steps * kStep;
  LinearTile t{};
  t.rows = static_cast<int>(block_row(p, plan, block + 1) - row);
  t.panels = plan.panels;
  t.start = job.start + row;
  t.ahead_gap = ahead.gap;
  t.ahead_step = ahead.step;
  for (int half = 0; half < 2; half += plan.panels) {
    t.tile = tile + half * kPanel * 4;
    for (std::int64_t s = s0; s < s1; s += plan.chain) {
      t.steps = std::min(plan.chain, s1 - s);
      t.first = s == 0;
      t.x = job.x + (row * p.steps + s * t.rows) * plan.kernels.x_size;
      t.w = w + half * kLine + s * kStep;
      t.ahead = ahead.first + (s - s0) * ahead.step;
      plan.kernels.tile(t);
    }
  }
}

void finish(const LinearJob& job, std::int64_t block, std::int64_t pair, const char* tile) {
  const LinearParams& p = job.p;
  const std::int64_t row = block_row(p, job.plan, block);
  const bool gated = is_gated(p.activation);
  const std::int64_t width = gated ? kPanel : kPair;
  const std::int64_t column = pair * width;
  LinearFinish f{};
  f.tile = tile;
  f.w_scale = p.w_scale == nullptr ? nullptr : p.w_scale + pair * kPair;
  f.x_scale = job.scale + row;
  f.row_scale = p.row_scale == nullptr ? nullptr : p.row_scale + row * p.row_scale_stride;
  f.row_scale_stride = p.row_scale_stride;
  f.bias = p.bias == nullptr ? nullptr : p.bias + column;
  f.up_bias = p.bias == nullptr ? nullptr : p.bias + (gated ? p.columns : 0) + column;
  f.residual = p.residual == nullptr
                   ? nullptr
                   : at(p.residual, row * p.residual_stride + column, p.out_dtype);
  f.residual_stride = p.residual_stride;
  f.out = const_cast<char*>(at(p.out, row * p.out_stride + column, p.out_dtype));
  f.out_stride = p.out_stride;
  f.rows = static_cast<int>(block_row(p, job.plan, block + 1) - row);
  f.columns = static_cast<int>(std::min(width, p.columns - column));
  job.plan.kernels.finish(f);
}

// Blocks [b0, b1) times pairs [p0, p1): over K slab by slab, their tiles waiting for the next one.
void multiply_group(const LinearJob& job, std::int64_t b0, std::int64_t b1, std::int64_t p0,
                    std::int64_t p1, char* tiles) {
  const LinearParams& p = job.p;
  const std::int64_t rows0 = block_row(p, job.plan, b0);
  const std::int64_t pair_bytes = (block_row(p, job.plan, b1) - rows0) * kPair * 4;
  const bool whole = job.plan.slab >= p.steps;
  if (p.steps == 0) std::memset(tiles, 0, static_cast<std::size_t>(pair_bytes));
  for (std::int64_t s0 = 0; s0 < std::max<std::int64_t>(1, p.steps); s0 += job.plan.slab) {
    const std::int64_t s1 = std::min(p.steps, s0 + job.plan.slab);
    for (std::int64_t pair = p0; pair < p1; ++pair) {
      for (std::int64_t block = b0; block < b1; ++block) {
        const std::int64_t row = block_row(p, job.plan, block) - rows0;
        char* tile = tiles + (whole ? 0 : (pair - p0) * pair_bytes) + row * kPair * 4;
        multiply(job, block, pair, s0, s1, tile, ahead_of(job, b1 - block, pair, s0, s1));
        if (s1 == p.steps) finish(job, block, pair, tile);
      }
    }
  }
}

void multiply_chunk(const LinearJob& job, std::int64_t chunk, int worker) {
  const std::int64_t p0 = chunk * job.plan.chunk;
  const std::int64_t p1 = std::min(job.p.pairs, p0 + job.plan.chunk);
  char* tiles = job.tiles + worker * job.plan.worker_tiles;
  for (std::int64_t b0 = 0; b0 < job.plan.blocks; b0 += job.plan.group) {
    const std::int64_t b1 = std::min(job.plan.blocks, b0 + job.plan.group);
    multiply_group(job, b0, b1, p0, p1, tiles);
  }
}

}  // namespace

LinearJob linear_job(const LinearParams& p) {
  LinearJob job{p, linear_plan(p), nullptr, nullptr, nullptr, nullptr, nullptr};
  const auto base = (reinterpret_cast<std::uintptr_t>(p.workspace) + kLine - 1) / kLine * kLine;
  job.x = reinterpret_cast<char*>(base);
  job.scale = reinterpret_cast<float*>(job.x + job.plan.scales);
  job.inverse = job.scale + p.m;
  job.start = reinterpret_cast<std::int32_t*>(job.inverse + p.m);
  job.tiles = job.x + job.plan.tiles;
  return job;
}

std::int64_t linear_units(const LinearJob& job, int phase) {
  const LinearParams& p = job.p;
  if (p.m == 0 || p.columns == 0) return 0;
  if (phase == 2) return (p.pairs + job.plan.chunk - 1) / job.plan.chunk;
  if (p.x_is_packed) return 0;
  if (phase == 1) return job.plan.blocks * ((p.steps + kPackSteps - 1) / kPackSteps);
  return p.kind == LinearKind::kInt8 ? p.m : 0;
}

void linear_unit(const LinearJob& job, int phase, std::int64_t unit, int worker) {
  if (phase == 0) scale_row(job, unit);
  if (phase == 1) pack(job, unit);
  if (phase == 2) multiply_chunk(job, unit, worker);
}

void linear_cpu(const LinearParams& p) {
  const LinearJob job = linear_job(p);
  LinearPhases phases;
  phases.reset(job);
  parallel_workers(job.plan.threads, [&](int worker) { linear_run(job, phases, worker); });
}

}  // namespace vlakern
