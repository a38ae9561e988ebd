// The attention of ode_loop as a warp program: a block has 16 queries of one chunk and head and all
// of their keys or a part, which its warps divide, 16 at a time.
#pragma once

#include "ode_loop/ode_loop_index.h"

namespace vlakern {

template <class W, int kHeadDim>
class OdeLoopAttention {
 public:
  template <class T>
  using Lanes = typename W::template Lanes<T>;

  VLAKERN_DEVICE OdeLoopAttention(W& w, const OdeLoopParams& p) : w_(w), p_(p) {}

  VLAKERN_DEVICE void run(int layer) {
    const int items = ode_loop_units(p_) * p_.splits;
    for (int item = w_.block(); item < items; item += w_.blocks()) one(layer, item);
  }

 private:
  static constexpr int kRowBytes = 2 * kHeadDim + kOdeLoopPad;
  // A warp sums half of the columns where all would not fit into its registers; two have its keys.
  static constexpr int kHalves = kHeadDim > 128 ? 2 : 1;
  static constexpr int kParts = kOdeLoopWarps / kHalves;  // of the keys
  static constexpr int kRuns = kHeadDim / 64 / kHalves;   // of eight tiles of columns, of a warp

  struct Block {  // 16 keys
    bool own;
    int first;  // key of the prefix, or position of the chunk
    int end;    // keys of the prefix, or positions
  };

  VLAKERN_DEVICE void one(int layer, int item) {
    item_ = item;
    at_ = ode_loop_queries(p_, item / p_.splits);
    group_ = at_.head / (p_.heads / p_.groups);
    const int prefix = p_.prefix_index[at_.chunk];
    begin_ = p_.cu_prefix[prefix];
    prefix_keys_ = p_.cu_prefix[prefix + 1] - begin_;
    keys_ = p_.kv + layer * p_.kv_layer + std::int64_t{begin_} * p_.groups * kHeadDim +
            group_ * kHeadDim;
    prepare(layer);
    w_.sync();
    limits();
    const int before = ceil_div(prefix_keys_, 16), all = before + ceil_div(p_.chunk, 16);
    for (int i = item % p_.splits * kParts + part(); i < all; i += p_.splits * kParts) {
      const bool own = i >= before;
      see({own, (own ? i - before : i) * 16, own ? p_.chunk : prefix_keys_});
    }
    combine();
    if (p_.splits > 1) join();
  }

  VLAKERN_DEVICE int part() const { return w_.warp() / kHalves; }
  VLAKERN_DEVICE int side() const { return w_.warp() % kHalves; }
  VLAKERN_DEVICE int width() const { return (p_.heads + 2 * p_.groups) * kHeadDim; }
  VLAKERN_DEVICE unsigned char* query(int row) const {
    return w_.shared() + kOdeLoopFixedBytes + row * kRowBytes;
  }
  VLAKERN_DEVICE unsigned char* own_key(int position) const { return query(16 + position); }
  VLAKERN_DEVICE float& maximum(int part, int row) const {
    return reinterpret_cast<float*>(query(16 + p_.chunk))[part * 16 + row];
  }
  VLAKERN_DEVICE float& sum(int part, int row) const { return maximum(kParts + part, row); }

  // Norm and rotation of the queries and of the chunk's own keys, a row a warp.
  VLAKERN_DEVICE void prepare(int layer) {
    const int queries = least(16, p_.chunk - at_.first);
    for (int i = w_.warp(); i < 16 + p_.chunk; i += kOdeLoopWarps) {
      const bool is_query = i < 16;
      if (is_query && i >= queries) continue;
      const int row = at_.chunk * p_.chunk + (is_query ? at_.first + i : i - 16);
      const int head = is_query ? at_.head : p_.heads + group_;
      const float* weight = is_query ? p_.layers[layer].q_norm : p_.layers[layer].k_norm;
      rotate(p_.qkv + std::int64_t{row} * width() + head * kHeadDim, weight, p_.positions[row],
             reinterpret_cast<std::uint16_t*>(query(i)));
    }
  }

  VLAKERN_DEVICE void rotate(const std::uint16_t* from, const float* weight, int position,
                             std::uint16_t* to) {
    constexpr int kHalf = kHeadDim / 2;
    constexpr int kEach = kHalf / kLanes;  // pairs of a lane
    Lanes<float> low[kEach], high[kEach], squares;
    w_.each([&](int lane) {
      squares[lane] = 0;
      VLAKERN_UNROLL
      for (int i = 0; i < kEach; ++i) {
        const int at = i * kLanes + lane;
        low[i][lane] = wide(w_.load2(from + at));
        high[i][lane] = wide(w_.load2(from + kHalf + at));
        squares[lane] += low[i][lane] * low[i][lane] + high[i][lane] * high[i][lane];
      }
    });
    VLAKERN_UNROLL
    for (int mask = 1; mask < kLanes; mask *= 2) add(squares, w_.swap(squares, mask));
    w_.each([&](int lane) {
      const float factor = w_.rsqrt(squares[lane] / kHeadDim + p_.eps);
      VLAKERN_UNROLL
      for (int i = 0; i < kEach; ++i) {
        const int at = i * kLanes + lane;
        const float cos = p_.cos[std::int64_t{position} * kHalf + at];
        const float sin = p_.sin[std::int64_t{position} * kHalf + at];
        const float a = low[i][lane] * factor * weight[at];
        const float b = high[i][lane] * factor * weight[kHalf + at];
        to[at] = static_cast<std::uint16_t>(bf16_bits(a * cos - b * sin));
        to[kHalf + at] = static_cast<std::uint16_t>(bf16_bits(b * cos + a * sin));
      }
    });
  }

  VLAKERN_DEVICE void add(Lanes<float>& to, const Lanes<float>& more) {
    w_.each([&](int lane) { to[lane] += more[lane]; });
  }

  // What each row sees, and nothing seen yet.
  VLAKERN_DEVICE void limits() {
    w_.each([&](int lane) {
      VLAKERN_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int position = at_.first + half * 8 + row_of(lane);
        const bool there = position < p_.chunk;
        end_[half][lane] = there ? p_.kv_end[at_.chunk * p_.chunk + position] : 0;
        maximum_[half][lane] = -kInfinity;
        sum_[half][lane] = 0;
      }
      VLAKERN_UNROLL
      for (int i = 0; i < 8 * kRuns; ++i) out_[i][lane] = Sums{};
    });
  }

  // 16 bytes of a key or a value; zeros where there is none, so that a weight of 0 takes it out.
  VLAKERN_DEVICE Words load_key(const Block& b, int key, int column) const {
    if (key >= b.end) return Words{};
    if (b.own) return *reinterpret_cast<const Words*>(own_key(key) + 2 * column);
    return w_.load16(keys_ + std::int64_t{key} * p_.groups * kHeadDim + column);
  }
  VLAKERN_DEVICE Words load_value(const Block& b, int key, int column) const {
    if (key >= b.end) return Words{};
    if (!b.own) {
      return w_.load16(keys_ + p_.kv_values + std::int64_t{key} * p_.groups * kHeadDim + column);
    }
    const std::int64_t row = at_.chunk * p_.chunk + key;
    const int head = p_.heads + p_.groups + group_;
    return w_.load16(p_.qkv + row * width() + head * kHeadDim + column);
  }

  VLAKERN_DEVICE void see(const Block& b) {
    Lanes<Sums> scores[2];
    w_.each([&](int lane) { scores[0][lane] = scores[1][lane] = Sums{}; });
    VLAKERN_UNROLL
    for (int column = 0; column < kHeadDim; column += 32) score(b, column, scores);
    weigh(b, scores);
    Lanes<Left> weights;
    w_.each([&](int lane) {
      const Sums &a = scores[0][lane], &c = scores[1][lane];
      weights[lane] = {{bf16_pair(a.c[0], a.c[1]), bf16_pair(a.c[2], a.c[3]),
                        bf16_pair(c.c[0], c.c[1]), bf16_pair(c.c[2], c.c[3])}};
    });
    VLAKERN_UNROLL
    for (int run = 0; run < kRuns; ++run) add_values(b, run, weights);
  }

  VLAKERN_DEVICE void score(const Block& b, int column, Lanes<Sums> (&scores)[2]) {
    Lanes<Left> left[2];
    Lanes<Right> right[2][2];
    w_.each([&](int lane) {
      const int at = column + 8 * column_of(lane);
      const Words row = *reinterpret_cast<const Words*>(query(row_of(lane)) + 2 * at);
      const Words row8 = *reinterpret_cast<const Words*>(query(row_of(lane) + 8) + 2 * at);
      VLAKERN_UNROLL
      for (int half = 0; half < 2; ++half) left[half][lane] = left_of(row, row8, half);
      VLAKERN_UNROLL
      for (int tile = 0; tile < 2; ++tile) {
        const Words key = load_key(b, b.first + tile * 8 + row_of(lane), at);
        right[tile][0][lane] = right_of(key, 0);
        right[tile][1][lane] = right_of(key, 1);
      }
    });
    w_.join();
    VLAKERN_UNROLL
    for (int tile = 0; tile < 2; ++tile) {
      w_.mma(scores[tile], left[0], right[tile][0]);
      w_.mma(scores[tile], left[1], right[tile][1]);
    }
  }

  // Scores become weights, by the rows' new maxima.
  VLAKERN_DEVICE void weigh(const Block& b, Lanes<Sums> (&scores)[2]) {
    const float scale = kLog2E * w_.rsqrt(static_cast<float>(kHeadDim));
    const int before = b.own ? prefix_keys_ : 0;
    VLAKERN_UNROLL
    for (int half = 0; half < 2; ++half) {
      Lanes<float> top;
      w_.each([&](int lane) {
        top[lane] = maximum_[half][lane];
        VLAKERN_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int key = b.first + i / 2 * 8 + 2 * column_of(lane) + i % 2;
          float& score = scores[i / 2][lane].c[2 * half + i % 2];
          const bool seen = key < b.end && before + key < end_[half][lane];
          score = seen ? score * scale : -kInfinity;
          top[lane] = score > top[lane] ? score : top[lane];
        }
      });
      for (int mask = 1; mask < 4; mask *= 2) {
        const Lanes<float> other = w_.swap(top, mask);
        w_.each([&](int lane) { top[lane] = other[lane] > top[lane] ? other[lane] : top[lane]; });
      }
      w_.each([&](int lane) {
        const float base = top[lane] == -kInfinity ? 0.0f : top[lane];  // nothing seen yet
        const float kept = w_.exp2(maximum_[half][lane] - base);
        maximum_[half][lane] = top[lane];
        sum_[half][lane] *= kept;
        VLAKERN_UNROLL
        for (int i = 0; i < 4; ++i) {
          float& score = scores[i / 2][lane].c[2 * half + i % 2];
          score = w_.exp2(score - base);
          sum_[half][lane] += score;
        }
        VLAKERN_UNROLL
        for (int i = 0; i < 8 * kRuns; ++i) {
          out_[i][lane].c[2 * half] *= kept;
          out_[i][lane].c[2 * half + 1] *= kept;
        }
      });
    }
  }

  // Tile t of a run holds column t of each lane's eight, which are 64 together.
  VLAKERN_DEVICE void add_values(const Block& b, int run, const Lanes<Left>& weights) {
    Lanes<Right> right[8];
    w_.each([&](int lane) {
      const int key = b.first + 2 * column_of(lane);
      const int column = (side() * kRuns + run) * 64 + row_of(lane) * 8;
      Words rows[4];
      VLAKERN_UNROLL
      for (int i = 0; i < 4; ++i) rows[i] = load_value(b, key + i / 2 * 8 + i % 2, column);
      VLAKERN_UNROLL
      for (int t = 0; t < 8; ++t) {
        right[t][lane] = {{pair_of(rows[0], rows[1], t), pair_of(rows[2], rows[3], t)}};
      }
    });
    w_.join();
    VLAKERN_UNROLL
    for (int t = 0; t < 8; ++t) w_.mma(out_[run * 8 + t], weights, right[t]);
  }

  VLAKERN_DEVICE Sums& shared_sums(int warp, int tile, int lane) const {
    return reinterpret_cast<Sums*>(w_.shared())[(warp * 8 + tile) * kLanes + lane];
  }

  // The warps' parts, in their order.
  VLAKERN_DEVICE void combine() {
    for (int mask = 1; mask < 4; mask *= 2) {
      VLAKERN_UNROLL
      for (int half = 0; half < 2; ++half) add(sum_[half], w_.swap(sum_[half], mask));
    }
    w_.each([&](int lane) {
      if (side() != 0 || column_of(lane) != 0) return;
      VLAKERN_UNROLL
      for (int i = 0; i < 2; ++i) {
        maximum(part(), i * 8 + row_of(lane)) = maximum_[i][lane];
        sum(part(), i * 8 + row_of(lane)) = sum_[i][lane];
      }
    });
    w_.sync();
    Lanes<float> share[2];
    w_.each([&](int lane) {
      VLAKERN_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = half * 8 + row_of(lane);
        const Row all = whole(row);
        const float mine = maximum_[half][lane];
        share[half][lane] = all.sum > 0 ? w_.exp2(mine - all.maximum) / all.sum : 0.0f;
        if (p_.splits > 1 && w_.warp() == 0 && column_of(lane) == 0) {
          p_.part_rows[(item_ * 16 + row) * 2] = all.maximum;
          p_.part_rows[(item_ * 16 + row) * 2 + 1] = all.sum;
        }
      }
    });
    VLAKERN_UNROLL
    for (int run = 0; run < kRuns; ++run) {
      w_.each([&](int lane) {
        VLAKERN_UNROLL
        for (int t = 0; t < 8; ++t) {
          Sums part = out_[run * 8 + t][lane];
          VLAKERN_UNROLL
          for (int i = 0; i < 4; ++i) part.c[i] *= share[i / 2][lane];
          shared_sums(w_.warp(), t, lane) = part;
        }
      });
      w_.sync();
      w_.each([&](int lane) {
        for (int side = 0; side < kHalves; ++side) write(run, side, lane);
      });
      w_.sync();
    }
  }

  struct Row {
    float maximum;
    float sum;  // 0: the row saw nothing
  };
  VLAKERN_DEVICE Row whole(int row) const {
    Row all{-kInfinity, 0};
    VLAKERN_UNROLL
    for (int i = 0; i < kParts; ++i) {
      all.maximum = maximum(i, row) > all.maximum ? maximum(i, row) : all.maximum;
    }
    if (all.maximum == -kInfinity) return all;
    VLAKERN_UNROLL
    for (int i = 0; i < kParts; ++i)
      all.sum += sum(i, row) * w_.exp2(maximum(i, row) - all.maximum);
    return all;
  }

  // Warp t adds up tile t of a run, of each half of the columns.
  VLAKERN_DEVICE void write(int run, int side, int lane) const {
    Sums sums = shared_sums(side, w_.warp(), lane);
    VLAKERN_UNROLL
    for (int part = 1; part < kParts; ++part) {
      const Sums more = shared_sums(part * kHalves + side, w_.warp(), lane);
      VLAKERN_UNROLL
      for (int i = 0; i < 4; ++i) sums.c[i] += more.c[i];
    }
    VLAKERN_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int row = i / 2 * 8 + row_of(lane);
      const int first = (side * kRuns + run) * 64;
      const int column = first + (2 * column_of(lane) + i % 2) * 8 + w_.warp();
      if (p_.splits > 1) {
        p_.parts[(item_ * 16 + row) * kHeadDim + column] = sums.c[i];
      } else {
        put(row, column, sums.c[i]);
      }
    }
  }
  VLAKERN_DEVICE void put(int row, int column, float value) const {
    if (at_.first + row >= p_.chunk) return;
    const std::int64_t to = at_.chunk * p_.chunk + at_.first + row;
    p_.attended[(to * p_.heads + at_.head) * kHeadDim + column] =
        static_cast<std::uint16_t>(bf16_bits(value));
  }

  // The block that comes last adds up what all have left, in the order of the keys.
  VLAKERN_DEVICE void join() {
    auto* before = reinterpret_cast<std::uint32_t*>(w_.shared() + kOdeLoopSumsBytes);
    std::uint32_t* joined = p_.joined + item_ / p_.splits;
    const auto others = static_cast<std::uint32_t>(p_.splits - 1);
    if (w_.warp() == 0) {
      w_.each([&](int lane) {
        if (lane != 0) return;
        *before = w_.arrive(joined, 1u);
        if (*before == others) *joined = 0;
      });
    }
    w_.sync();
    if (*before == others) {
      w_.each([&](int lane) {
        for (int i = w_.warp() * kLanes + lane; i < 16 * kHeadDim; i += kOdeLoopWarps * kLanes) {
          put(i / kHeadDim, i % kHeadDim, joined_value(i / kHeadDim, i % kHeadDim));
        }
      });
    }
    w_.sync();
  }
  VLAKERN_DEVICE float joined_value(int row, int column) const {
    const int first = item_ / p_.splits * p_.splits;
    float top = -kInfinity, all = 0, value = 0;
    for (int i = first; i < first + p_.splits; ++i) {
      const float one = w_.load4(p_.part_rows + (i * 16 + row) * 2);
      top = one > top ? one : top;
    }
    if (top == -kInfinity) return 0;
    for (int i = first; i < first + p_.splits; ++i) {
      const float* part = p_.part_rows + (i * 16 + row) * 2;
      const float weight = w_.load4(part + 1) * w_.exp2(w_.load4(part) - top);
      all += weight;
      value += weight * w_.load4(p_.parts + (i * 16 + row) * kHeadDim + column);
    }
    return value / all;
  }

  static constexpr float kInfinity = __builtin_huge_valf();
  static constexpr float kLog2E = 1.44269504088896341f;

  W& w_;
  const OdeLoopParams& p_;
  OdeLoopQueries at_;
  int item_, group_, begin_, prefix_keys_;
  const std::uint16_t* keys_;  // of this layer, prefix and group
  Lanes<int> end_[2];
  Lanes<float> maximum_[2], sum_[2];
  Lanes<Sums> out_[8 * kRuns];
};

}  // namespace vlakern
