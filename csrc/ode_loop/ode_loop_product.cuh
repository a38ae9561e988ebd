// The products of ode_loop as a warp program: see common/warp.h.
#pragma once

#include "ode_loop/ode_loop_index.h"

namespace vlakern {

// What a lane has of two adjacent columns of a row; the second pair is up's where a gate is.
struct OdeLoopFound {
  float v[4];
};

// A block multiplies up to eight tiles at a time, 16 rows by 8 columns each. Its warps divide k,
// and every lane reads nothing but what it copied itself: 16 bytes of the tiles' rows in each step.
template <class W, int kRowTiles>
class OdeLoopMultiplier {
 public:
  template <class T>
  using Lanes = typename W::template Lanes<T>;

  VLAKERN_DEVICE OdeLoopMultiplier(W& w, int rows, int ring_slots, float eps)
      : w_(w), rows_(rows), ring_slots_(ring_slots), eps_(eps) {}

  // Begins to copy the weights of a product's first steps, which nobody writes: before its inputs
  // are there. `run` of the same product is what comes next.
  VLAKERN_DEVICE void prefetch(const OdeLoopProduct& p) { prefetch(p, group_of(p, 0)); }

  // finish(row, column, found) for every pair of columns of each row. Copies of the next product's
  // weights, if there are `more` to come, begin as soon as this one's are read.
  template <class Finish>
  VLAKERN_DEVICE void run(const OdeLoopProduct& p, bool more, const OdeLoopProduct& next,
                          Finish finish) {
    OdeLoopGroup group = group_of(p, 0);
    for (int index = 1;; ++index) {
      if (group.units > 0) multiply(p, group);
      const OdeLoopGroup then = group_of(p, index);
      const bool last = then.units == 0;
      if (!last || more) {
        OdeLoopProduct coming = p;  // a choice between two addresses would put both in memory
        if (last) coming = next;
        prefetch(coming, last ? group_of(next, 0) : then);
      }
      if (group.units > 0) add_up(p, group, finish);
      if (last) return;
      group = then;
    }
  }

 private:
  static constexpr int kTiles = kOdeLoopTiles / kRowTiles;

  VLAKERN_DEVICE OdeLoopGroup group_of(const OdeLoopProduct& p, int index) const {
    return ode_loop_group(p, kRowTiles, index, w_.block(), w_.blocks(), ring_slots_);
  }

  VLAKERN_DEVICE unsigned char* slot(int index, int lane) const {
    const int first = kOdeLoopFixedBytes + w_.warp() * ring_slots_ * kOdeLoopSlot;
    return w_.shared() + first + index * kOdeLoopSlot + lane * 16;
  }
  // Of a stage: first the inputs, two for each row tile, then the weights.
  VLAKERN_DEVICE int stage(const OdeLoopGroup& group, int step) const {
    return step % group.depth * (2 * kRowTiles + group.tiles);
  }

  VLAKERN_DEVICE void prefetch(const OdeLoopProduct& p, const OdeLoopGroup& group) {
    for (int step = 0; step < group.depth; ++step) copy_weights(p, group, step);
    w_.commit();
  }

  VLAKERN_DEVICE void copy_weights(const OdeLoopProduct& p, const OdeLoopGroup& group, int step) {
    if (step >= ode_loop_steps(p.k, w_.warp())) return;
    const int to = stage(group, step) + 2 * kRowTiles;
    w_.each([&](int lane) {
      const int k = ode_loop_k(w_.warp(), step, lane);
      VLAKERN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        if (tile >= group.tiles) break;
        const int row = ode_loop_weight_row(p, group.first, tile, row_of(lane));
        const bool valid = row >= 0 && k < p.k;
        const std::uint16_t* from = valid ? p.w + std::int64_t{row} * p.k + k : p.w;
        w_.copy16(lane, slot(to + tile, lane), from, valid);
      }
    });
  }

  VLAKERN_DEVICE void copy_inputs(const OdeLoopProduct& p, const OdeLoopGroup& group, int step) {
    if (step >= ode_loop_steps(p.k, w_.warp())) return;
    const int to = stage(group, step);
    w_.each([&](int lane) {
      const int k = ode_loop_k(w_.warp(), step, lane);
      VLAKERN_UNROLL
      for (int half = 0; half < 2 * kRowTiles; ++half) {
        const int row = half * 8 + row_of(lane);
        const bool valid = row < rows_ && k < p.k;
        const std::uint16_t* from = valid ? p.a + std::int64_t{row} * p.k + k : p.a;
        w_.copy16(lane, slot(to + half, lane), from, valid);
      }
    });
  }

  VLAKERN_DEVICE void multiply(const OdeLoopProduct& p, const OdeLoopGroup& group) {
    for (int step = 0; step < group.depth; ++step) {
      copy_inputs(p, group, step);
      w_.commit();
    }
    clear();
    const int steps = ode_loop_steps(p.k, w_.warp());
    for (int step = 0; step < steps; ++step) {
      w_.wait(group.depth - 1);
      take(p, group, step);
      // After take() has read the stage: its products wait for the loads.
      copy_inputs(p, group, step + group.depth);
      copy_weights(p, group, step + group.depth);
      w_.commit();
    }
  }

  VLAKERN_DEVICE void clear() {
    w_.each([&](int lane) {
      VLAKERN_UNROLL
      for (int i = 0; i < kOdeLoopTiles; ++i) sums_[i][lane] = Sums{};
      VLAKERN_UNROLL
      for (int i = 0; i < 2 * kRowTiles; ++i) squares_[i][lane] = 0;
    });
  }

  // One step of k into all tiles.
  VLAKERN_DEVICE void take(const OdeLoopProduct& p, const OdeLoopGroup& group, int step) {
    const int from = stage(group, step);
    Lanes<Left> left[kRowTiles][2];
    w_.each([&](int lane) {
      VLAKERN_UNROLL
      for (int i = 0; i < kRowTiles; ++i) {
        const Words row = *reinterpret_cast<const Words*>(slot(from + 2 * i, lane));
        const Words row8 = *reinterpret_cast<const Words*>(slot(from + 2 * i + 1, lane));
        left[i][0][lane] = left_of(row, row8, 0);
        left[i][1][lane] = left_of(row, row8, 1);
        if (!p.normed) continue;
        squares_[2 * i][lane] += squares(row);
        squares_[2 * i + 1][lane] += squares(row8);
      }
    });
    VLAKERN_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      if (tile >= group.tiles) break;
      Lanes<Right> right[2];
      w_.each([&](int lane) {
        const Words column =
            *reinterpret_cast<const Words*>(slot(from + 2 * kRowTiles + tile, lane));
        right[0][lane] = right_of(column, 0);
        right[1][lane] = right_of(column, 1);
      });
      VLAKERN_UNROLL
      for (int i = 0; i < kRowTiles; ++i) {
        w_.mma(sums_[i * kTiles + tile], left[i][0], right[0]);
        w_.mma(sums_[i * kTiles + tile], left[i][1], right[1]);
      }
    }
  }

  VLAKERN_DEVICE static float squares(const Words& words) {
    float sum = 0;
    VLAKERN_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float first = float_from(words.w[i] << 16);
      const float second = float_from(words.w[i] & 0xffff0000u);
      sum += first * first + second * second;
    }
    return sum;
  }

  VLAKERN_DEVICE Sums& shared_sums(int warp, int tile, int lane) const {
    auto* all = reinterpret_cast<Sums*>(w_.shared());
    return all[(warp * kOdeLoopTiles + tile) * kLanes + lane];
  }
  VLAKERN_DEVICE float& shared_squares(int warp, int row) const {
    auto* all = reinterpret_cast<float*>(w_.shared() + kOdeLoopSumsBytes);
    return all[warp * kOdeLoopRows + row];
  }

  // The warps' sums, in their order, and what becomes of them.
  template <class Finish>
  VLAKERN_DEVICE void add_up(const OdeLoopProduct& p, const OdeLoopGroup& group, Finish finish) {
    if (p.normed) leave_squares();
    w_.each([&](int lane) {
      VLAKERN_UNROLL
      for (int tile = 0; tile < kOdeLoopTiles; ++tile) {
        if (tile % kTiles < group.tiles) shared_sums(w_.warp(), tile, lane) = sums_[tile][lane];
      }
    });
    w_.sync();
    const int each = p.gated ? 2 : 1;
    const int unit = w_.warp() % (kTiles / each), row_tile = w_.warp() / (kTiles / each);
    if (unit < group.units && row_tile < kRowTiles) {
      w_.each(
          [&](int lane) { hand_out(p, group.first + unit, row_tile, unit * each, lane, finish); });
    }
    w_.sync();
  }

  template <class Finish>
  VLAKERN_DEVICE void hand_out(const OdeLoopProduct& p, int unit, int row_tile, int tile, int lane,
                               Finish finish) const {
    const Sums first = total(row_tile * kTiles + tile, lane);
    const Sums second = p.gated ? total(row_tile * kTiles + tile + 1, lane) : Sums{};
    const int column = unit * 8 + 2 * column_of(lane);
    VLAKERN_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = row_tile * 16 + half * 8 + row_of(lane);
      if (row >= rows_) continue;
      const float factor = p.normed ? norm_of(p, row) : 1.0f;
      OdeLoopFound found{};
      VLAKERN_UNROLL
      for (int i = 0; i < 2; ++i) {
        found.v[i] = first.c[2 * half + i] * factor;
        found.v[2 + i] = second.c[2 * half + i] * factor;
      }
      finish(row, column, found);
    }
  }

  VLAKERN_DEVICE Sums total(int tile, int lane) const {
    Sums sums = shared_sums(0, tile, lane);
    VLAKERN_UNROLL
    for (int warp = 1; warp < kOdeLoopWarps; ++warp) {
      const Sums more = shared_sums(warp, tile, lane);
      VLAKERN_UNROLL
      for (int i = 0; i < 4; ++i) sums.c[i] += more.c[i];
    }
    return sums;
  }

  VLAKERN_DEVICE void leave_squares() {
    VLAKERN_UNROLL
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      for (int mask = 1; mask < 4; mask *= 2) {
        const Lanes<float> other = w_.swap(squares_[i], mask);
        w_.each([&](int lane) { squares_[i][lane] += other[lane]; });
      }
      w_.each([&](int lane) {
        if (column_of(lane) == 0)
          shared_squares(w_.warp(), i * 8 + row_of(lane)) = squares_[i][lane];
      });
    }
  }

  VLAKERN_DEVICE float norm_of(const OdeLoopProduct& p, int row) const {
    float sum = 0;
    VLAKERN_UNROLL
    for (int warp = 0; warp < kOdeLoopWarps; ++warp) sum += shared_squares(warp, row);
    return w_.rsqrt(sum / static_cast<float>(p.k) + eps_);
  }

  W& w_;
  const int rows_, ring_slots_;
  const float eps_;
  Lanes<Sums> sums_[kOdeLoopTiles];
  Lanes<float> squares_[2 * kRowTiles];
};

}  // namespace vlakern
