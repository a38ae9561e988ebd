// One unit of shared_attention forward in bf16.
#pragma once

#include "shared_attention/shared_attention_kernel.h"
#include "shared_attention/shared_attention_unit_bf16.h"

namespace vlakern {
namespace {

// Where a unit keeps what it makes.
struct UnitMemory {
  char *k, *v;    // one block, packed
  float* scores;  // [kTileRows] rows of kScoreRow
  char* weights;  // [kTileRows] rows of kRowBytes
  char* queries;  // [kTileRows] rows of kRowBytes
  float* sums;    // [tiles][kTileRows] rows of sums_row
  std::int64_t sums_row;

  UnitMemory(float* scratch, std::int64_t width) : sums_row(round_up(width, 16) + 16) {
    Arena arena{scratch};
    k = bytes(arena, kBlockPanels * packed_k_bytes(width));
    v = bytes(arena, kBlockPanels * packed_v_bytes(width) + panels_of(width) * kPanelStep);
    scores = arena.take(kTileRows * kScoreRow);
    weights = bytes(arena, kTileRows * kRowBytes);
    queries = bytes(arena, kTileRows * kRowBytes);
    sums = arena.take(kUnitTiles * kTileRows * sums_row);
  }
  static char* bytes(Arena& arena, std::int64_t count) {
    return reinterpret_cast<char*>(arena.take(count / 4));
  }
};

// The rows of a unit: what each sees and which tile it is in.
struct UnitRows {
  const SharedAttentionParams& p;
  const AttentionUnit& unit;
  std::int64_t share, first, most = 0;
  int tiles;
  std::int32_t end[kUnitTiles * kTileRows];
  Tile tile[kUnitTiles];

  UnitRows(const SharedAttentionParams& params, const AttentionUnit& u)
      : p(params), unit(u), share(p.heads / p.groups) {
    const std::int64_t before = p.cu_q[u.document] * share;
    const std::int64_t count = p.cu_q[u.document + 1] * share - before;
    first = before + count * u.begin / u.tiles;
    tiles = static_cast<int>(u.end - u.begin);
    for (int t = 0; t < tiles; ++t) {
      Tile& one = tile[t];
      const std::int64_t begin = before + count * (u.begin + t) / u.tiles;
      one.first = begin - first;
      one.rows = before + count * (u.begin + t + 1) / u.tiles - begin;
      for (std::int64_t n = one.first; n < one.first + one.rows; ++n) end[n] = p.kv_end[query(n)];
      one.most = end[one.first + one.rows - 1];  // ends do not decrease
      most = one.most;
      std::fill_n(one.run.peak, 16, kNone);
      std::fill_n(one.run.shift, 16, 0.0f);
      std::fill_n(one.run.sum, 16, 0.0f);
    }
  }
  std::int64_t query(std::int64_t n) const { return (first + n) / share; }
  std::int64_t row(std::int64_t n) const { return p.rows == nullptr ? query(n) : p.rows[query(n)]; }
  std::int64_t head(std::int64_t n) const { return unit.group * share + (first + n) % share; }
};

// Lines that a later block will read: one line of every row, then the next line of every row.
class Coming {
 public:
  void add(const HeadRows& t, std::int64_t row, std::int64_t group, std::int64_t count,
           std::int64_t width) {
    if (count <= 0) return;
    span_[spans_++] = {reinterpret_cast<const char*>(row_of<bf16>(t, row, group)), t.row * 2, count,
                       width * 2};
  }
  // Gives the next lines, about as many as there are steps.
  void serve(Steps& steps) {
    steps.ahead = steps.x;
    steps.ahead_step = 0;
    if (at_ == spans_) return;
    const Span& span = span_[at_];
    steps.ahead = span.data + row_ * span.row + byte_;
    steps.ahead_step = span.row;
    row_ += steps.count;
    if (row_ < span.rows) return;
    row_ = 0;
    byte_ += 64;
    if (byte_ < span.bytes) return;
    byte_ = 0;
    ++at_;
  }

 private:
  struct Span {
    const char* data;
    std::int64_t row, rows, bytes;
  };
  Span span_[4];
  int spans_ = 0, at_ = 0;
  std::int64_t row_ = 0, byte_ = 0;
};

// The keys of a document in blocks of whole panels.
class Blocks {
 public:
  Blocks(const SharedAttentionParams& p, std::int64_t document, std::int64_t group,
         std::int64_t most)
      : p_(p), keys_(p, document), group_(group), most_(std::min(most, keys_.count)) {
    panels_ = panels_of(keys_.count);
    count_ = (panels_ + kBlockPanels - 1) / kBlockPanels;
  }
  std::int64_t count() const { return count_; }
  std::int64_t begin(std::int64_t i) const { return panels_ * i / count_ * kPanel; }
  std::int64_t end(std::int64_t i) const { return std::min(most_, begin(i + 1)); }

  Block pack(std::int64_t i, const UnitMemory& memory) const {
    constexpr std::int64_t kGap =
        kBlockPanels * kHalf * kPanelStep + kPanelStep;  // no power of two
    const std::int64_t first = begin(i), count = end(i) - first;
    Block block{};
    if (count <= 0) return block;
    const bf16* rows[kBlockPanels * kPanel];
    find(p_.prefix_k, p_.k, first, count, rows);
    pack_k(rows, count, p_.width, memory.k);
    find(p_.prefix_v, p_.v, first, count, rows);
    pack_v(rows, count, p_.width, kGap, memory.v);
    block.part[block.parts++] = {{memory.k, memory.v, kGap}, 0, first, count};
    return block;
  }
  Coming ahead(std::int64_t i) const {
    Coming ahead;
    if (i >= count_) return ahead;
    const std::int64_t first = begin(i), last = end(i);
    const std::int64_t cached = std::min(last, keys_.cached) - first;
    const std::int64_t own = std::max(first, keys_.cached);
    for (const bool values : {false, true}) {
      ahead.add(values ? p_.prefix_v : p_.prefix_k, keys_.prefix_row + first, group_, cached,
                p_.width);
      ahead.add(values ? p_.v : p_.k, keys_.own_row + own - keys_.cached, group_, last - own,
                p_.width);
    }
    return ahead;
  }

 private:
  void find(const HeadRows& prefix, const HeadRows& own, std::int64_t first, std::int64_t count,
            const bf16** rows) const {
    for (std::int64_t j = 0; j < count; ++j) {
      rows[j] = keys_.row<bf16>(prefix, own, first + j, group_);
    }
  }

  const SharedAttentionParams& p_;
  const Keys keys_;
  const std::int64_t group_, most_;
  std::int64_t panels_, count_;
};

inline void score_tile(const Block& block, const Tile& tile, const UnitMemory& memory,
                       std::int64_t words, Coming& ahead) {
  const Products<true> products(tile.rows);
  for (int i = 0; i < block.parts; ++i) {
    const Part& part = block.part[i];
    const std::int64_t seen = part.seen(tile.most);
    Steps steps{memory.queries, part.packed.k, words, nullptr, 0};
    for (std::int64_t j = 0; j < seen; j += kPanel, steps.w += words * kPanelStep) {
      ahead.serve(steps);
      products(seen - j)(&steps, 1, memory.scores + part.column + j, kScoreRow, nullptr);
    }
  }
}

template <bool kFirst>
void add_values(const Block& block, const Tile& tile, const UnitMemory& memory, float* sums,
                std::int64_t width, Coming& ahead) {
  const Products<kFirst> products(tile.rows);
  Steps steps[2];
  for (int i = 0; i < block.parts; ++i) {
    const Part& part = block.part[i];
    const char* x = memory.weights + 2 * part.column;
    steps[i] = {x, part.packed.v, (part.seen(tile.most) + 1) / 2, x, 0};
  }
  for (std::int64_t d = 0; d < width; d += kPanel) {
    ahead.serve(steps[0]);
    products(width - d)(steps, block.parts, sums + d, memory.sums_row, tile.run.factor);
    for (int i = 0; i < block.parts; ++i) steps[i].w += block.part[i].packed.v_gap;
  }
}

inline void finish_tile(const UnitRows& rows, const Tile& tile, const UnitMemory& memory,
                        const float* sums) {
  for (std::int64_t r = 0; r < tile.rows; ++r) {
    const std::int64_t row = rows.row(tile.first + r), head = rows.head(tile.first + r);
    const float sum = tile.run.sum[r];
    const bool saw = sum > 0;
    auto* out = row_of<bf16>(rows.p.out, row, head);
    if (tile.most == 0) {
      std::fill_n(out, rows.p.width, bf16{0});
    } else {
      write_row<VecAvx512Bf16>(out, sums + r * memory.sums_row, saw ? 1.0f / sum : 0.0f,
                               rows.p.width);
    }
    // The shift as the weights saw it, so that its rounding cancels.
    const double shift = double{-tile.run.shift[r]} * 0.69314718055994531;
    const auto lse = static_cast<float>(shift + double{std::log(sum)});
    *row_of<float>(rows.p.lse, row, head) = saw ? lse : kNone;
  }
}

inline void copy_queries(const UnitRows& rows, const Tile& tile, char* to) {
  for (std::int64_t n = tile.first; n < tile.first + tile.rows; ++n, to += kRowBytes) {
    std::memcpy(to, row_of<bf16>(rows.p.q, rows.row(n), rows.head(n)),
                static_cast<std::size_t>(rows.p.width) * sizeof(bf16));
  }
}

inline void attention_unit_bf16(const SharedAttentionParams& p, const AttentionUnit& unit,
                                const AttentionUnit* next, float* scratch) {
  const UnitMemory memory(scratch, p.width);
  UnitRows rows(p, unit);
  const Blocks blocks(p, unit.document, unit.group, rows.most);
  const float high = Slope(p.scale).high;
  const auto sums = [&](int t) { return memory.sums + t * kTileRows * memory.sums_row; };
  for (std::int64_t i = 0; i < blocks.count(); ++i) {
    const Block block = blocks.pack(i, memory);
    if (block.parts == 0) break;
    Coming ahead = blocks.ahead(i + 1);
    if (i + 1 == blocks.count() && next != nullptr) {
      ahead = Blocks(p, next->document, next->group, rows.most).ahead(0);
    }
    for (int t = 0; t < rows.tiles; ++t) {
      Tile& tile = rows.tile[t];
      if (tile.most <= block.part[0].first) continue;
      copy_queries(rows, tile, memory.queries);
      score_tile(block, tile, memory, p.width / 2, ahead);
      soften_tile(memory.scores, block, rows.end + tile.first, tile, high, memory.weights);
      const auto add = i == 0 ? add_values<true> : add_values<false>;
      add(block, tile, memory, sums(t), p.width, ahead);
    }
  }
  for (int t = 0; t < rows.tiles; ++t) finish_tile(rows, rows.tile[t], memory, sums(t));
}

}  // namespace
}  // namespace vlakern
