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
      std::fill_n(one.run.base, 16, 0.0f);
      std::fill_n(one.run.sum, 16, 0.0f);
    }
  }
  std::int64_t query(std::int64_t n) const { return (first + n) / share; }
  std::int64_t row(std::int64_t n) const { return p.rows == nullptr ? query(n) : p.rows[query(n)]; }
  std::int64_t head(std::int64_t n) const { return unit.group * share + (first + n) % share; }
};

// Lines that a later block will read, as many at a time as there are steps.
class Coming {
 public:
  // Every `gap`-th byte from each of `times` starts `next` apart.
  void add(const char* data, std::int64_t gap, std::int64_t count, std::int64_t next,
           std::int64_t times) {
    if (count > 0 && times > 0) span_[spans_++] = {data, gap, count, next, times};
  }
  // One line of every row, then the next line of every row.
  void add(const HeadRows& t, std::int64_t row, std::int64_t group, std::int64_t count,
           std::int64_t width) {
    const auto* data = reinterpret_cast<const char*>(row_of<bf16>(t, row, group));
    add(data, t.row * 2, count, kLine, (width * 2 + kLine - 1) / kLine);
  }
  // Panels [first, first + count) of what is packed.
  void add(const PackedKeys& packed, std::int64_t first, std::int64_t count, std::int64_t width) {
    const std::int64_t bytes = packed_k_bytes(width), step = kHalf * kPanelStep;
    add(packed.k + first * bytes, kLine, count * bytes / kLine, 0, 1);
    add(packed.v + first * step, kLine, count * step / kLine, packed.v_gap, panels_of(width));
  }
  void serve(Steps& steps) {
    steps.ahead = steps.x;
    steps.ahead_step = 0;
    if (at_ == spans_) return;
    const Span& span = span_[at_];
    steps.ahead = span.data + time_ * span.next + line_ * span.gap;
    steps.ahead_step = span.gap;
    line_ += steps.count;
    if (line_ < span.count) return;
    line_ = 0;
    if (++time_ < span.times) return;
    time_ = 0;
    ++at_;
  }

 private:
  static constexpr std::int64_t kLine = 64;
  struct Span {
    const char* data;
    std::int64_t gap, count, next, times;
  };
  Span span_[6];
  int spans_ = 0, at_ = 0;
  std::int64_t line_ = 0, time_ = 0;
};

// The keys of a document in blocks of whole panels; those of its prefix may be packed already.
class Blocks {
 public:
  Blocks(const SharedAttentionParams& p, std::int64_t document, std::int64_t group,
         std::int64_t most)
      : p_(p),
        keys_(p, document),
        group_(group),
        most_(std::min(most, keys_.count)),
        panels_(panels_of(keys_.count)),
        count_((panels_ + kBlockPanels - 1) / kBlockPanels) {
    if (p.packed == nullptr || p.prefix_index == nullptr) return;
    packed_ = packed_prefix(p, p.prefix_index[document], group);
    packed_keys_ = keys_.cached / kPanel * kPanel;
  }
  std::int64_t count() const { return count_; }

  Block pack(std::int64_t i, const UnitMemory& memory) const {
    constexpr std::int64_t kGap = kBlockPanels * kHalf * kPanelStep + kPanelStep;
    const Span at = span(i);
    Block block{};
    if (at.packed > at.begin) {
      const std::int64_t panel = at.begin / kPanel;
      const PackedKeys from{packed_.k + panel * packed_k_bytes(p_.width),
                            packed_.v + panel * kHalf * kPanelStep, packed_.v_gap};
      block.part[block.parts++] = {from, 0, at.begin, at.packed - at.begin};
    }
    if (at.end > at.packed) {
      const std::int64_t count = at.end - at.packed;
      const bf16* rows[kBlockPanels * kPanel];
      find(p_.prefix_k, p_.k, at.packed, count, rows);
      pack_k(rows, count, p_.width, memory.k);
      find(p_.prefix_v, p_.v, at.packed, count, rows);
      pack_v(rows, count, p_.width, kGap, memory.v);
      block.part[block.parts++] = {
          {memory.k, memory.v, kGap}, at.packed - at.begin, at.packed, count};
    }
    return block;
  }
  Coming coming(std::int64_t i) const {
    Coming lines;
    if (i >= count_) return lines;
    const Span at = span(i);
    if (at.packed > at.begin) {
      lines.add(packed_, at.begin / kPanel, panels_of(at.packed - at.begin), p_.width);
    }
    const std::int64_t cached = std::min(at.end, keys_.cached) - at.packed;
    const std::int64_t own = std::max(at.packed, keys_.cached);
    for (const bool values : {false, true}) {
      lines.add(values ? p_.prefix_v : p_.prefix_k, keys_.prefix_row + at.packed, group_, cached,
                p_.width);
      lines.add(values ? p_.v : p_.k, keys_.own_row + own - keys_.cached, group_, at.end - own,
                p_.width);
    }
    return lines;
  }

 private:
  struct Span {
    std::int64_t begin, packed, end;  // logical keys; those before `packed` are packed already
  };
  Span span(std::int64_t i) const {
    const std::int64_t begin = panels_ * i / count_ * kPanel;
    const std::int64_t end = std::min(most_, panels_ * (i + 1) / count_ * kPanel);
    return {begin, std::clamp(packed_keys_, begin, std::max(begin, end)), end};
  }
  void find(const HeadRows& prefix, const HeadRows& own, std::int64_t first, std::int64_t count,
            const bf16** rows) const {
    for (std::int64_t j = 0; j < count; ++j) {
      rows[j] = keys_.row<bf16>(prefix, own, first + j, group_);
    }
  }

  const SharedAttentionParams& p_;
  const Keys keys_;
  const std::int64_t group_, most_, panels_, count_;
  PackedKeys packed_{};
  std::int64_t packed_keys_ = 0;
};

inline void pack_prefix_bf16(const SharedAttentionParams& p, std::int64_t prefix,
                             std::int64_t group) {
  const PackedKeys to = packed_prefix(p, prefix, group);
  const std::int64_t first = p.cu_prefix[prefix];
  const std::int64_t count = (p.cu_prefix[prefix + 1] - first) / kPanel * kPanel;
  const bf16* rows[kPanel];
  for (std::int64_t key = 0; key < count; key += kPanel) {
    const std::int64_t panel = key / kPanel;
    for (int j = 0; j < kPanel; ++j) rows[j] = row_of<bf16>(p.prefix_k, first + key + j, group);
    pack_k(rows, kPanel, p.width, to.k + panel * packed_k_bytes(p.width));
    for (int j = 0; j < kPanel; ++j) rows[j] = row_of<bf16>(p.prefix_v, first + key + j, group);
    pack_v(rows, kPanel, p.width, to.v_gap, to.v + panel * kHalf * kPanelStep);
  }
}

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
    const bool saw = sum != 0;  // NaN is an answer, too
    auto* out = row_of<bf16>(rows.p.out, row, head);
    if (tile.most == 0) {
      std::fill_n(out, rows.p.width, bf16{0});
    } else {
      write_row<VecAvx512Bf16>(out, sums + r * memory.sums_row, saw ? 1.0f / sum : 0.0f,
                               rows.p.width);
    }
    const double peak = double{tile.run.base[r]} * double{rows.p.scale};
    const auto lse = static_cast<float>(peak + double{std::log(sum)});
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
    Coming ahead = blocks.coming(i + 1);
    if (i + 1 == blocks.count() && next != nullptr) {
      ahead = Blocks(p, next->document, next->group, rows.most).coming(0);
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
