#include <algorithm>
#include <numeric>
#include <vector>

#include "common/thread_pool.h"
#include "norm/norm.h"
#include "norm/norm_groups.h"
#include "norm/norm_row.h"

namespace vlakern {
namespace {

// The rows of every group: places [start[g], start[g + 1]) of `order`, or of 0, 1, 2 and so on.
struct GroupedRows {
  std::vector<std::int64_t> start;
  std::vector<std::int64_t> order;  // empty: the identity

  explicit GroupedRows(const NormParams& p) : start(static_cast<std::size_t>(p.groups) + 1) {
    if (p.row_group == nullptr) {
      for (std::int64_t g = 0; g <= p.groups; ++g) at(start, g) = g * (p.rows / p.groups);
      return;
    }
    for (std::int64_t r = 0; r < p.rows; ++r) ++at(start, group_of(p, r) + 1);
    std::partial_sum(start.begin(), start.end(), start.begin());
    std::vector<std::int64_t> next = start;
    order.resize(static_cast<std::size_t>(p.rows));
    for (std::int64_t r = 0; r < p.rows; ++r) at(order, at(next, group_of(p, r))++) = r;
  }
  std::int64_t row(std::int64_t place) const {
    return order.empty() ? place : order[static_cast<std::size_t>(place)];
  }
  std::int64_t begin(std::int64_t group) const { return start[static_cast<std::size_t>(group)]; }

 private:
  static std::int64_t& at(std::vector<std::int64_t>& values, std::int64_t i) {
    return values[static_cast<std::size_t>(i)];
  }
};

// The partial sums of one kind, [B * S, M] each, or null: see NormBackRow for p, q and g.
struct Partials {
  float* p;
  float* q;
  float* g;

  explicit Partials(const NormGradientParams& s) : p(nullptr), q(nullptr), g(nullptr) {
    float* next = s.partial;
    const std::int64_t size = s.op.groups * s.runs * s.op.width;
    const auto take = [&](bool wanted) {
      float* taken = wanted ? next : nullptr;
      if (wanted) next += size;
      return taken;
    };
    p = take(s.op.weight.data != nullptr || s.op.scale.data != nullptr);
    q = take(s.op.bias.data != nullptr || s.op.shift.data != nullptr);
    g = take(s.op.gate.data != nullptr);
  }
};

float* cleared(float* base, std::int64_t row, std::int64_t width) {
  if (base == nullptr) return nullptr;
  std::fill_n(base + row * width, width, 0.0f);
  return base + row * width;
}

void set_row(const NormGradientParams& s, std::int64_t r, NormBackRow& row) {
  row.dy = s.dy.row(r);
  row.dh = s.dh.row(r);
  row.h = s.op.x.row(r);
  row.residual = s.op.residual.row(r);
  row.dx = s.dx.row(r);
  row.dresidual = s.dresidual.row(r);
}

// So many rows are summed before their sum is added to the run's: roundings grow with the root of
// the additions in a row.
constexpr std::int64_t kRowsTogether = 4;

// Moves what `from` has gathered to `to`.
void move_sums(const NormKernels& kernels, float* from, float* to, std::int64_t width) {
  if (to == nullptr) return;
  kernels.accumulate(from, to, width);
  std::fill_n(from, width, 0.0f);
}

// Places [begin, end) of the sorted rows, of one group; `run` has its sums.
void run_rows(const NormGradientParams& s, const NormKernels& kernels, const GroupedRows& rows,
              std::int64_t begin, std::int64_t end, const NormBackRow& run) {
  thread_local Scratch scratch;
  scratch.reserve(3, run.width);
  NormBackRow two[2] = {run, run};
  for (NormBackRow& one : two) {
    one.p = run.p == nullptr ? nullptr : cleared(scratch.row(0), 0, run.width);
    one.q = run.q == nullptr ? nullptr : cleared(scratch.row(1), 0, run.width);
    one.g = run.g == nullptr ? nullptr : cleared(scratch.row(2), 0, run.width);
  }
  for (std::int64_t place = begin; place < end; ++place) {
    NormBackRow& now = two[place % 2];
    NormBackRow& next = two[(place + 1) % 2];
    now.next = &next;
    set_row(s, rows.row(place), now);
    set_row(s, rows.row(std::min(place + 1, end - 1)), next);
    kernels.backward(now);
    if ((place + 1 - begin) % kRowsTogether != 0 && place + 1 < end) continue;
    move_sums(kernels, now.p, run.p, run.width);
    move_sums(kernels, now.q, run.q, run.width);
    move_sums(kernels, now.g, run.g, run.width);
  }
}

// Runs [begin, end) of the flattened [B, S]; each writes its rows of dx and its partial sums.
void run_runs(const NormGradientParams& s, const NormKernels& kernels, const GroupedRows& rows,
              std::int64_t begin, std::int64_t end) {
  const Partials partials(s);
  NormVectors vectors(s.op, kernels);
  for (std::int64_t run = begin; run < end; ++run) {
    const std::int64_t group = run / s.runs;
    const std::int64_t first = rows.begin(group), last = rows.begin(group + 1);
    const std::int64_t per_run = (last - first + s.runs - 1) / s.runs;
    const std::int64_t from = std::min(last, first + run % s.runs * per_run);
    vectors.move_to(group);
    NormBackRow shared{};
    shared.p = cleared(partials.p, run, s.op.width);
    shared.q = cleared(partials.q, run, s.op.width);
    shared.g = cleared(partials.g, run, s.op.width);
    shared.gate = vectors.gate();
    shared.a = vectors.a();
    shared.width = s.op.width;
    shared.eps = s.op.eps;
    run_rows(s, kernels, rows, from, std::min(last, from + per_run), shared);
  }
}

constexpr std::int64_t kTile = 512;  // columns whose sums are brought together at a time

struct Tile {
  std::int64_t column, width;
  alignas(64) float w[kTile], up[kTile], bias[kTile];

  const void* of(const NormMatrix& m, std::int64_t row) const {
    const char* at = m.row(row);
    return at == nullptr ? nullptr : at + column * dtype_size(m.dtype);
  }
  float* out(const NormMatrix& m, std::int64_t row) const {
    return m.data == nullptr ? nullptr : reinterpret_cast<float*>(m.row(row)) + column;
  }
};

// The sum over a group's runs, in their order, brought together in the first one's place.
float* sum_runs(const NormGradientParams& s, const NormKernels& kernels, const Tile& tile,
                float* base, std::int64_t group) {
  if (base == nullptr) return nullptr;
  float* to = base + group * s.runs * s.op.width + tile.column;
  for (std::int64_t run = 1; run < s.runs; ++run) {
    kernels.accumulate(to + run * s.op.width, to, tile.width);
  }
  return to;
}

void set_or_copy(const NormKernels& kernels, const float* factor, const float* sums, float* to,
                 std::int64_t width) {
  if (factor == nullptr) {
    std::copy_n(sums, width, to);
  } else {
    std::fill_n(to, width, 0.0f);
    kernels.multiply_add(factor, sums, to, width);
  }
}

void finish_group(const NormGradientParams& s, const NormKernels& kernels, Tile& tile,
                  std::int64_t group) {
  const NormParams& p = s.op;
  const Partials partials(s);
  const float* sum_p = sum_runs(s, kernels, tile, partials.p, group);
  const float* sum_q = sum_runs(s, kernels, tile, partials.q, group);
  const float* sum_g = sum_runs(s, kernels, tile, partials.g, group);
  const bool scaled = p.scale.data != nullptr;
  if (scaled) {
    NormAffine up{};
    up.scale = tile.of(p.scale, group);
    up.scale_dtype = p.scale.dtype;
    up.a = tile.up;
    kernels.affine(up, tile.width);
  }
  const auto add = [&](const float* sums, float* to) {
    if (to == nullptr) return;
    if (scaled) kernels.multiply_add(tile.up, sums, to, tile.width);
    if (!scaled) kernels.accumulate(sums, to, tile.width);
  };
  add(sum_p, tile.out(s.dweight, 0));
  add(sum_q, tile.out(s.dbias, 0));
  if (float* to = tile.out(s.dscale, group)) {
    set_or_copy(kernels, p.weight.data == nullptr ? nullptr : tile.w, sum_p, to, tile.width);
    if (p.bias.data != nullptr) kernels.multiply_add(tile.bias, sum_q, to, tile.width);
  }
  if (float* to = tile.out(s.dshift, group)) std::copy_n(sum_q, tile.width, to);
  if (float* to = tile.out(s.dgate, group)) std::copy_n(sum_g, tile.width, to);
}

// Tiles [begin, end) of columns, over all groups in their order.
void finish_tiles(const NormGradientParams& s, const NormKernels& kernels, std::int64_t begin,
                  std::int64_t end) {
  const NormParams& p = s.op;
  for (std::int64_t i = begin; i < end; ++i) {
    Tile tile;
    tile.column = i * kTile;
    tile.width = std::min(kTile, p.width - tile.column);
    NormAffine fixed{};
    fixed.weight = tile.of(p.weight, 0);
    fixed.weight_dtype = p.weight.dtype;
    fixed.plus_one = p.kind == NormKind::kRmsPlusOne;
    fixed.a = tile.w;
    kernels.affine(fixed, tile.width);
    if (p.bias.data != nullptr) {
      kernels.widen(tile.of(p.bias, 0), p.bias.dtype, tile.bias, tile.width);
    }
    for (const NormMatrix* out : {&s.dweight, &s.dbias}) {
      if (float* to = tile.out(*out, 0)) std::fill_n(to, tile.width, 0.0f);
    }
    for (std::int64_t group = 0; group < p.groups; ++group) finish_group(s, kernels, tile, group);
  }
}

}  // namespace

void norm_backward_cpu(const NormGradientParams& s, Isa isa, int threads) {
  constexpr std::int64_t kBytesPerThread = 1 << 18;
  const NormParams& p = s.op;
  check_groups(p);
  const NormKernels kernels =
      norm_kernels(isa, {p.x.dtype, p.residual.dtype, p.kind == NormKind::kLayer});
  const GroupedRows rows(p);
  const std::int64_t bytes = p.rows * p.width * 4 * dtype_size(p.x.dtype);
  const std::int64_t most = threads > 0 ? threads : default_threads();
  const auto used = static_cast<int>(std::clamp<std::int64_t>(bytes / kBytesPerThread, 1, most));
  parallel_for(used, p.groups * s.runs, [&](std::int64_t begin, std::int64_t end) {
    run_runs(s, kernels, rows, begin, end);
  });
  const bool sums =
      Partials(s).p != nullptr || Partials(s).q != nullptr || Partials(s).g != nullptr;
  if (!sums) return;
  const std::int64_t tiles = (p.width + kTile - 1) / kTile;
  const std::int64_t partial_bytes = p.groups * s.runs * p.width * 4;
  const auto finishers =
      static_cast<int>(std::clamp<std::int64_t>(partial_bytes / kBytesPerThread, 1, most));
  parallel_for(finishers, tiles,
               [&](std::int64_t begin, std::int64_t end) { finish_tiles(s, kernels, begin, end); });
}

}  // namespace vlakern
