#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/thread_pool.h"
#include "linear/linear_job.h"

namespace vlakern {
namespace {

constexpr float kTiny = 1e-30f;  // rows below it are all zeros to int8

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

constexpr std::int64_t kPackSteps = 256;  // of x that a worker packs at a time

// Step s of a block's first row.
char* packed_x(const LinearJob& job, std::int64_t row, std::int64_t rows, std::int64_t s) {
  return job.x + (row * job.p.steps + s * rows) * job.plan.kernels.x_size;
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
  a.packed = packed_x(job, row, a.rows, a.step0);
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

// Steps [s0, s1) of a pair, and the weights that are needed after them, null if none.
struct Slab {
  std::int64_t pair, s0, s1;
  const char* next;
};

const char* weights_at(const LinearJob& job, std::int64_t pair, std::int64_t step) {
  return job.p.panels + (pair * job.p.steps + step) * kStep;
}

// A block alone reads ahead in its own stream. Of several the last two each bring half of the next
// slab, so that its first block finds it there and memory is asked evenly.
Ahead ahead_of(const LinearJob& job, std::int64_t blocks, std::int64_t blocks_left,
               const Slab& slab) {
  const char* own = weights_at(job, slab.pair, slab.s0);
  if (job.plan.blocks == 1) return {own + kFar, kLine, kStep};
  if (blocks_left > 2 || slab.next == nullptr) return {own, 0, 0};
  if (blocks == 1) return {slab.next, kLine, kStep};
  return {blocks_left == 2 ? slab.next : slab.next + (slab.s1 - slab.s0) * kLine, 0, kLine};
}

// One block of rows times one slab.
void multiply(const LinearJob& job, std::int64_t block, const Slab& slab, char* tile,
              const Ahead& ahead) {
  const LinearPlan& plan = job.plan;
  const std::int64_t row = block_row(job.p, plan, block);
  LinearTile t{};
  t.rows = static_cast<int>(block_row(job.p, plan, block + 1) - row);
  t.panels = plan.panels;
  t.start = job.start + row;
  t.ahead_gap = ahead.gap;
  t.ahead_step = ahead.step;
  for (int half = 0; half < 2; half += plan.panels) {
    t.tile = tile + half * kPanel * 4;
    for (std::int64_t s = slab.s0; s < slab.s1; s += plan.chain) {
      t.steps = std::min(plan.chain, slab.s1 - s);
      t.first = s == 0;
      t.x = packed_x(job, row, t.rows, s);
      t.w = weights_at(job, slab.pair, s) + half * kLine;
      t.ahead = ahead.first + (s - slab.s0) * ahead.step;
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
  alignas(kLine) float z[kMostRows * kPair];
  LinearFinish f{};
  f.tile = tile;
  f.z = z;
  f.gated = gated;
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
  job.plan.kernels.scale(f);
  if (job.plan.kernels.activate != nullptr) job.plan.kernels.activate(f);
  job.plan.kernels.store(f);
}

// What the epilogue adds, while the block is multiplied: its rows are far apart.
void bring_near(const LinearJob& job, std::int64_t block, std::int64_t pair) {
  const LinearParams& p = job.p;
  if (p.residual == nullptr) return;
  const std::int64_t width = is_gated(p.activation) ? kPanel : kPair, column = pair * width;
  const std::int64_t bytes = std::min(width, p.columns - column) * dtype_size(p.out_dtype);
  const std::int64_t row1 = block_row(p, job.plan, block + 1);
  for (std::int64_t row = block_row(p, job.plan, block); row < row1; ++row) {
    const char* first = at(p.residual, row * p.residual_stride + column, p.out_dtype);
    for (std::int64_t byte = 0; byte < bytes; byte += kLine) __builtin_prefetch(first + byte, 0, 2);
  }
}

struct Unit {
  std::int64_t b0, b1, p0, p1;  // blocks and pairs
};

// A group reads all weights before the next one does.
Unit unit_at(const LinearJob& job, std::int64_t unit) {
  const LinearPlan& plan = job.plan;
  const std::int64_t group = unit / plan.chunks, chunk = unit % plan.chunks;
  return {group_block(plan, group), group_block(plan, group + 1), chunk_pair(job.p, plan, chunk),
          chunk_pair(job.p, plan, chunk + 1)};
}

// The weights that come after steps up to s1 of a pair: of the next pair, of the unit's next slab,
// or of the unit `after`.
const char* weights_after(const LinearJob& job, const Unit& u, std::int64_t pair, std::int64_t s0,
                          std::int64_t s1, const Unit* after) {
  if (pair + 1 < u.p1) return weights_at(job, pair + 1, s0);
  if (s1 < job.p.steps) return weights_at(job, u.p0, s1);
  return after == nullptr ? nullptr : weights_at(job, after->p0, 0);
}

// Over K slab by slab; of several slabs the tiles of all pairs wait for the next one.
void multiply_unit(const LinearJob& job, const Unit& u, const Unit* after, char* tiles) {
  const LinearParams& p = job.p;
  const std::int64_t rows0 = block_row(p, job.plan, u.b0);
  const std::int64_t pair_bytes = (block_row(p, job.plan, u.b1) - rows0) * kPair * 4;
  const bool whole = job.plan.slab >= p.steps;
  if (p.steps == 0) std::memset(tiles, 0, static_cast<std::size_t>(pair_bytes));
  for (std::int64_t s0 = 0; s0 < std::max<std::int64_t>(1, p.steps); s0 += job.plan.slab) {
    const std::int64_t s1 = std::min(p.steps, s0 + job.plan.slab);
    for (std::int64_t pair = u.p0; pair < u.p1; ++pair) {
      const Slab slab{pair, s0, s1, weights_after(job, u, pair, s0, s1, after)};
      for (std::int64_t block = u.b0; block < u.b1; ++block) {
        const std::int64_t row = block_row(p, job.plan, block) - rows0;
        char* tile = tiles + (whole ? 0 : (pair - u.p0) * pair_bytes) + row * kPair * 4;
        if (s1 == p.steps) bring_near(job, block, pair);
        multiply(job, block, slab, tile, ahead_of(job, u.b1 - u.b0, u.b1 - block, slab));
        if (s1 == p.steps) finish(job, block, pair, tile);
      }
    }
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
  if (phase == 2) return job.plan.groups * job.plan.chunks;
  if (p.x_is_packed) return 0;
  if (phase == 1) return job.plan.blocks * ((p.steps + kPackSteps - 1) / kPackSteps);
  return p.kind == LinearKind::kInt8 ? p.m : 0;
}

void linear_unit(const LinearJob& job, int phase, std::int64_t unit, int worker,
                 std::int64_t next) {
  if (phase == 0) scale_row(job, unit);
  if (phase == 1) pack(job, unit);
  if (phase < 2) return;
  const bool more = next >= 0 && next < linear_units(job, 2);
  const Unit after = unit_at(job, more ? next : unit);
  char* tiles = job.tiles + worker * job.plan.worker_tiles;
  multiply_unit(job, unit_at(job, unit), more ? &after : nullptr, tiles);
}

void linear_cpu(const LinearParams& p) {
  const LinearJob job = linear_job(p);
  LinearPhases phases;
  phases.reset(job);
  parallel_workers(job.plan.threads, [&](int worker) { linear_run(job, phases, worker); });
}

}  // namespace vlakern
