#include "shared_attention/shared_attention_tasks.h"

namespace vlakern {
namespace {

// Fewer chains than this are cut into pieces whose sums are added afterwards; a fixed number, so
// that the sums are the same for any number of threads.
constexpr std::int64_t kChainsEnough = 16;
constexpr std::int64_t kSumRows = 64;  // rows of gradients of one task

struct Chains {
  std::vector<std::int64_t> documents;
  std::vector<AttentionChain> chains;  // of one group each, pointing into documents
};

Chains make_chains(const SharedAttentionParams& p) {
  Chains made;
  made.documents.reserve(static_cast<std::size_t>(p.documents));
  const bool cached = p.prefix_index != nullptr;
  const std::int64_t count = cached ? p.prefixes : p.documents;
  for (std::int64_t c = 0; c < count; ++c) {
    const std::size_t first = made.documents.size();
    for (std::int64_t r = cached ? 0 : c; r < (cached ? p.documents : c + 1); ++r) {
      if (!cached || p.prefix_index[r] == c) made.documents.push_back(r);
    }
    for (std::int64_t g = 0; g < p.groups; ++g) {
      made.chains.push_back({cached ? c : -1, made.documents.data() + first,
                             static_cast<std::int64_t>(made.documents.size() - first), g});
    }
  }
  return made;
}

struct Pieces {
  std::vector<AttentionTile> tiles;
  std::vector<AttentionPiece> pieces;
  std::vector<const float*> from;
  std::vector<AttentionSum> sums;
};

std::int64_t tiles_of(const SharedAttentionParams& p, const AttentionChain& chain) {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < chain.count; ++i) {
    count += tile_count(query_rows(p, chain.document[i]), kAttentionTile / kAttentionUnit);
  }
  return count;
}

std::int64_t own_keys(const SharedAttentionParams& p, std::int64_t r) {
  return p.cu_k[r + 1] - p.cu_k[r];
}

std::int64_t cached_keys(const SharedAttentionParams& p, std::int64_t prefix) {
  return prefix < 0 ? 0 : p.cu_prefix[prefix + 1] - p.cu_prefix[prefix];
}

// Rows before the own keys of the piece's `document`, or all of them.
std::int64_t rows_before(const SharedAttentionParams& p, const AttentionPiece& piece,
                         std::int64_t document) {
  std::int64_t rows = piece.prefix < 0 ? 0 : cached_keys(p, piece.prefix) + kGradientGap;
  for (std::int64_t i = 0; i < piece.count; ++i) {
    const std::int64_t r = piece.tile[i].document;
    if (r == document) return rows;
    if (i + 1 == piece.count || piece.tile[i + 1].document != r) {
      rows += own_keys(p, r) + kGradientGap;
    }
  }
  return rows;
}

bool holds(const AttentionPiece& piece, std::int64_t document) {
  return std::any_of(piece.tile, piece.tile + piece.count,
                     [&](const AttentionTile& tile) { return tile.document == document; });
}

void cut_chain(const SharedAttentionParams& p, const AttentionChain& chain, std::int64_t parts,
               Pieces& made) {
  const std::size_t first = made.tiles.size();
  for (std::int64_t i = 0; i < chain.count; ++i) {
    const std::int64_t r = chain.document[i], rows = query_rows(p, r);
    const std::int64_t count = tile_count(rows, kAttentionTile / kAttentionUnit);
    for (std::int64_t t = 0; t < count; ++t) {
      made.tiles.push_back(tile_of(r, chain.group, rows, t, count));
    }
  }
  const auto count = static_cast<std::int64_t>(made.tiles.size() - first);
  for (std::int64_t i = 0; i < parts; ++i) {
    const std::int64_t begin = count * i / parts, end = count * (i + 1) / parts;
    const AttentionTile* tile = made.tiles.data() + first + begin;
    made.pieces.push_back({chain.prefix, tile, end - begin, nullptr, 0});
  }
}

// The rows of `to` from the sums of keys (0) or values (1) of those of a chain's pieces that add to
// them: `document`'s own rows, or the prefix's if it is -1.
void add_sums(const SharedAttentionParams& p, const AttentionPiece* piece, std::int64_t parts,
              std::int64_t document, const AttentionSum& whole, int side, Pieces& made) {
  const std::int64_t wide = round_up(p.width, 16);
  for (std::int64_t begin = 0; begin < whole.count; begin += kSumRows) {
    AttentionSum sum = whole;
    sum.row += begin;
    sum.count = std::min(kSumRows, whole.count - begin);
    sum.from = made.from.data() + made.from.size();
    for (std::int64_t i = 0; i < parts; ++i) {
      if (document >= 0 && !holds(piece[i], document)) continue;
      const std::int64_t row = document < 0 ? 0 : rows_before(p, piece[i], document);
      made.from.push_back(piece[i].sums + (side * piece[i].rows + row + begin) * wide);
    }
    sum.pieces = made.from.data() + made.from.size() - sum.from;
    made.sums.push_back(sum);
  }
}

void add_chain_sums(const SharedAttentionParams& p, const AttentionChain& chain,
                    const AttentionPiece* piece, std::int64_t parts, Pieces& made) {
  for (const int side : {0, 1}) {
    const float factor = side == 0 ? p.scale : 1.0f;
    if (chain.prefix >= 0) {
      const HeadRows& to = side == 0 ? p.grad_prefix_k : p.grad_prefix_v;
      add_sums(p, piece, parts, -1,
               {to, p.cu_prefix[chain.prefix], cached_keys(p, chain.prefix), chain.group, nullptr,
                0, factor},
               side, made);
    }
    for (std::int64_t i = 0; i < chain.count; ++i) {
      const std::int64_t r = chain.document[i];
      const HeadRows& to = side == 0 ? p.grad_k : p.grad_v;
      add_sums(p, piece, parts, r, {to, p.cu_k[r], own_keys(p, r), chain.group, nullptr, 0, factor},
               side, made);
    }
  }
}

// Every chain in about as many pieces; memory for their sums, and who adds which of them.
Pieces make_pieces(const SharedAttentionParams& p, const std::vector<AttentionChain>& chains) {
  const auto count = static_cast<std::int64_t>(chains.size());
  Pieces made;
  std::int64_t tiles = 0, runs = 0;
  for (const AttentionChain& chain : chains) tiles += tiles_of(p, chain);
  made.tiles.reserve(static_cast<std::size_t>(tiles));
  std::vector<std::int64_t> parts;
  for (const AttentionChain& chain : chains) {
    const std::int64_t wanted = (kChainsEnough + count - 1) / count;
    parts.push_back(std::min(wanted, tiles_of(p, chain)));
    cut_chain(p, chain, parts.back(), made);
  }
  const std::int64_t wide = round_up(p.width, 16);
  std::int64_t floats = 16;
  for (AttentionPiece& piece : made.pieces) {
    piece.rows = rows_before(p, piece, -1);
    floats += 2 * piece.rows * wide;
    runs += piece.rows / kSumRows + piece.count + 2;
  }
  // Kept for the next call: fresh pages would take as long as the sums.
  thread_local std::vector<float> memory;
  if (memory.size() < static_cast<std::size_t>(floats)) {
    memory.resize(static_cast<std::size_t>(floats));
  }
  made.from.reserve(static_cast<std::size_t>(2 * runs));
  void* start = memory.data();
  std::size_t space = memory.size() * sizeof(float);
  auto* next = static_cast<float*>(std::align(64, space - 64, start, space));
  for (AttentionPiece& piece : made.pieces) {
    piece.sums = next;
    next += 2 * piece.rows * wide;
  }
  std::size_t first = 0;
  for (std::size_t c = 0; c < chains.size(); ++c) {
    add_chain_sums(p, chains[c], made.pieces.data() + first, parts[c], made);
    first += static_cast<std::size_t>(parts[c]);
  }
  return made;
}

void run_pieces(const SharedAttentionParams& p, const AttentionKernels& kernels,
                const std::vector<AttentionChain>& chains, int threads, std::int64_t floats) {
  const Pieces made = make_pieces(p, chains);
  run_tasks(threads, static_cast<std::int64_t>(made.pieces.size()), [&](std::int64_t i) {
    kernels.piece(p, made.pieces[static_cast<std::size_t>(i)], scratch(floats));
  });
  run_tasks(threads, static_cast<std::int64_t>(made.sums.size()), [&](std::int64_t i) {
    kernels.sum(p, made.sums[static_cast<std::size_t>(i)], scratch(floats));
  });
}

}  // namespace

void shared_attention_backward_cpu(const SharedAttentionTensors& t,
                                   const SharedAttentionGradients& g, float scale,
                                   const std::string& isa, int threads) {
  SharedAttentionParams p = shared_attention_params(t, scale);
  shared_attention_add_gradients(g, p);
  const AttentionKernels kernels = choose_kernels(select_isa(isa), p.dtype);
  const Chains made = make_chains(p);
  std::int64_t keys = 0;
  for (std::int64_t r = 0; r < p.documents; ++r) keys = std::max(keys, document_keys(p, r));
  for (std::int64_t n = 0; n < p.prefixes; ++n) {
    keys = std::max<std::int64_t>(keys, p.cu_prefix[n + 1] - p.cu_prefix[n]);
  }
  const std::int64_t floats = attention_backward_scratch(p.width, keys);
  const int used = choose_threads(p, threads);
  if (static_cast<std::int64_t>(made.chains.size()) < kChainsEnough) {
    return run_pieces(p, kernels, made.chains, used, floats);
  }
  run_tasks(used, static_cast<std::int64_t>(made.chains.size()), [&](std::int64_t i) {
    kernels.backward(p, made.chains[static_cast<std::size_t>(i)], scratch(floats));
  });
}

}  // namespace vlakern
