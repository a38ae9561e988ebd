#include <cmath>
#include <vector>

#include "shared_attention/shared_attention.h"
#include "shared_attention/shared_attention_packed.h"

namespace vlakern {
namespace {

constexpr std::initializer_list<DType> kStates = {DType::kF32, DType::kBF16};

void check_heads(Dims& dims, const char* name, const Tensor& t,
                 std::initializer_list<const char*> letters, DType dtype, bool output) {
  if (output) {
    dims.check_output(name, t, letters, {dtype});
  } else {
    dims.check(name, t, letters, {dtype});
  }
  const std::int64_t count = t.shape[0] * t.shape[1];
  if (t.rank == 3 && count > 0 && t.shape[2] > 1 && t.stride[2] != 1) {
    dims.fail(std::string(name) + " must have its last dimension adjacent");
  }
}

HeadRows heads_of(const Tensor& t) {
  return {reinterpret_cast<void*>(t.data), t.stride[0], t.stride[1]};
}

HeadRows heads_of(const std::optional<Tensor>& t) { return t ? heads_of(*t) : HeadRows{}; }

const std::int32_t* ints(Dims& dims, const char* name, const Tensor& t, const char* letter) {
  dims.check(name, t, {letter}, {DType::kI32});
  if (t.shape[0] > 1 && t.stride[0] != 1) dims.fail(std::string(name) + " must be contiguous");
  return reinterpret_cast<const std::int32_t*>(t.data);
}

void check_ranges(const Dims& dims, const char* name, const std::int32_t* cu, std::int64_t count,
                  std::int64_t rows) {
  bool good = cu[0] == 0 && cu[count] == rows;
  for (std::int64_t r = 0; r < count; ++r) good = good && cu[r] <= cu[r + 1];
  if (!good) {
    dims.fail(std::string(name) + " must rise from 0 to the " + std::to_string(rows) +
              " rows that it divides");
  }
}

// Of every document: its queries see what it has, and no less than the query before.
void check_ends(const Dims& dims, const SharedAttentionParams& p) {
  for (std::int64_t r = 0; r < p.documents; ++r) {
    std::int64_t keys = p.cu_k[r + 1] - p.cu_k[r];
    if (p.prefix_index != nullptr) {
      const std::int32_t n = p.prefix_index[r];
      if (n < 0 || n >= p.prefixes) dims.fail("prefix_index leaves the cached prefixes");
      keys += p.cu_prefix[n + 1] - p.cu_prefix[n];
    }
    std::int32_t before = 0;
    for (std::int32_t i = p.cu_q[r]; i < p.cu_q[r + 1]; ++i) {
      if (p.kv_end[i] < before || p.kv_end[i] > keys) {
        dims.fail("kv_end decreases within a document or leaves its keys");
      }
      before = p.kv_end[i];
    }
  }
}

void check_rows(const Dims& dims, const std::int32_t* rows, std::int64_t count) {
  thread_local std::vector<unsigned char> seen;
  seen.assign(static_cast<std::size_t>(count), 0);
  for (std::int64_t i = 0; i < count; ++i) {
    if (rows[i] < 0 || rows[i] >= count || seen[static_cast<std::size_t>(rows[i])]++ != 0) {
      dims.fail("rows must hold every row of q once: a permutation of 0 to T - 1");
    }
  }
}

void read_prefix(Dims& dims, const SharedAttentionTensors& t, SharedAttentionParams& p) {
  const bool all = t.cu_prefix && t.prefix_index && t.prefix_k && t.prefix_v;
  if (!all && (t.cu_prefix || t.prefix_index || t.prefix_k || t.prefix_v)) {
    dims.fail("prefix_k, prefix_v, cu_prefix and prefix_index must be given together");
  }
  if (!all) return;
  check_heads(dims, "prefix_k", *t.prefix_k, {"P", "G", "D"}, t.q.dtype, false);
  check_heads(dims, "prefix_v", *t.prefix_v, {"P", "G", "D"}, t.q.dtype, false);
  p.cu_prefix = ints(dims, "cu_prefix", *t.cu_prefix, "N + 1");
  p.prefixes = t.cu_prefix->shape[0] - 1;
  if (p.prefixes < 0) dims.fail("cu_prefix must have an element");
  p.prefix_index = ints(dims, "prefix_index", *t.prefix_index, "R");
  if (t.prefix_index->shape[0] != p.documents) dims.fail("prefix_index must be [R]");
  check_ranges(dims, "cu_prefix", p.cu_prefix, p.prefixes, t.prefix_k->shape[0]);
  p.prefix_k = heads_of(*t.prefix_k);
  p.prefix_v = heads_of(*t.prefix_v);
}

void read_packed(Dims& dims, const Tensor& t, SharedAttentionParams& p) {
  dims.check("packed", t, {"bytes"}, {DType::kU8});
  if (p.cu_prefix == nullptr) dims.fail("packed belongs to prefix_k and prefix_v");
  std::int64_t panels = 0;
  for (std::int64_t n = 0; n < p.prefixes; ++n) {
    panels += (p.cu_prefix[n + 1] - p.cu_prefix[n]) / kPanel;
  }
  const std::int64_t bytes = packed_bytes(panels, p.groups, p.width);
  if (t.shape[0] != bytes || (bytes > 1 && t.stride[0] != 1) || t.data % 64 != 0) {
    dims.fail("packed must be " + std::to_string(bytes) +
              " adjacent bytes at an address that 64 divides; pack the prefixes again");
  }
  p.packed = reinterpret_cast<char*>(t.data);
}

}  // namespace

SharedAttentionParams shared_attention_params(const SharedAttentionTensors& t, float scale) {
  SharedAttentionParams p{};
  Dims dims("shared_attention");
  dims.check("q", t.q, {"T", "H", "D"}, kStates);
  check_heads(dims, "q", t.q, {"T", "H", "D"}, t.q.dtype, false);
  check_heads(dims, "k", t.k, {"S", "G", "D"}, t.q.dtype, false);
  check_heads(dims, "v", t.v, {"S", "G", "D"}, t.q.dtype, false);
  check_heads(dims, "out", t.out, {"T", "H", "D"}, t.q.dtype, true);
  dims.check_output("lse", t.lse, {"T", "H"}, {DType::kF32});
  p.queries = t.q.shape[0];
  p.heads = t.q.shape[1];
  p.groups = t.k.shape[1];
  p.width = t.q.shape[2];
  if (p.groups == 0 || p.heads % p.groups != 0) dims.fail("H must be a multiple of G");
  if (p.width % 8 != 0) dims.fail("D must be a multiple of 8");
  if (!(scale >= 0) || !std::isfinite(scale)) dims.fail("scale must be finite and not negative");
  p.cu_q = ints(dims, "cu_q", t.cu_q, "R + 1");
  p.cu_k = ints(dims, "cu_k", t.cu_k, "R + 1");
  p.kv_end = ints(dims, "kv_end", t.kv_end, "T");
  p.documents = t.cu_q.shape[0] - 1;
  if (p.documents < 0) dims.fail("cu_q must have an element");
  read_prefix(dims, t, p);
  check_ranges(dims, "cu_q", p.cu_q, p.documents, p.queries);
  check_ranges(dims, "cu_k", p.cu_k, p.documents, t.k.shape[0]);
  check_ends(dims, p);
  if (t.packed) read_packed(dims, *t.packed, p);
  if (t.rows) {
    p.rows = ints(dims, "rows", *t.rows, "T");
    check_rows(dims, p.rows, p.queries);
  }
  p.q = heads_of(t.q);
  p.k = heads_of(t.k);
  p.v = heads_of(t.v);
  p.out = heads_of(t.out);
  p.lse = heads_of(t.lse);
  p.scale = scale;
  p.dtype = t.q.dtype;
  return p;
}

void shared_attention_add_gradients(const SharedAttentionGradients& g, SharedAttentionParams& p) {
  Dims dims("shared_attention_backward");
  check_heads(dims, "grad_q", g.grad_q, {"T", "H", "D"}, p.dtype, true);
  check_heads(dims, "grad_out", g.grad_out, {"T", "H", "D"}, p.dtype, false);
  if (g.grad_lse) dims.check("grad_lse", *g.grad_lse, {"T", "H"}, {DType::kF32});
  check_heads(dims, "grad_k", g.grad_k, {"S", "G", "D"}, p.dtype, true);
  check_heads(dims, "grad_v", g.grad_v, {"S", "G", "D"}, p.dtype, true);
  const bool cached = p.cu_prefix != nullptr;
  if (cached != g.grad_prefix_k.has_value() || cached != g.grad_prefix_v.has_value()) {
    dims.fail("grad_prefix_k and grad_prefix_v belong to prefix_k and prefix_v");
  }
  if (cached) {
    check_heads(dims, "grad_prefix_k", *g.grad_prefix_k, {"P", "G", "D"}, p.dtype, true);
    check_heads(dims, "grad_prefix_v", *g.grad_prefix_v, {"P", "G", "D"}, p.dtype, true);
    if (dims["P"] != p.cu_prefix[p.prefixes]) dims.fail("grad_prefix_k must be as prefix_k");
  }
  if (dims["T"] != p.queries || dims["H"] != p.heads || dims["G"] != p.groups ||
      dims["D"] != p.width || dims["S"] != p.cu_k[p.documents]) {
    dims.fail("gradients must be of the shapes of what they belong to");
  }
  p.grad_out = heads_of(g.grad_out);
  p.grad_lse = heads_of(g.grad_lse);
  p.grad_q = heads_of(g.grad_q);
  p.grad_k = heads_of(g.grad_k);
  p.grad_v = heads_of(g.grad_v);
  p.grad_prefix_k = heads_of(g.grad_prefix_k);
  p.grad_prefix_v = heads_of(g.grad_prefix_v);
}

SharedAttentionParams shared_attention_prefix_params(const Tensor& prefix_k, const Tensor& prefix_v,
                                                     const Tensor& cu_prefix,
                                                     const Tensor* packed) {
  SharedAttentionParams p{};
  Dims dims("shared_attention_pack_prefix");
  dims.check("prefix_k", prefix_k, {"P", "G", "D"}, kStates);
  check_heads(dims, "prefix_k", prefix_k, {"P", "G", "D"}, prefix_k.dtype, false);
  check_heads(dims, "prefix_v", prefix_v, {"P", "G", "D"}, prefix_k.dtype, false);
  p.cu_prefix = ints(dims, "cu_prefix", cu_prefix, "N + 1");
  p.prefixes = cu_prefix.shape[0] - 1;
  if (p.prefixes < 0) dims.fail("cu_prefix must have an element");
  check_ranges(dims, "cu_prefix", p.cu_prefix, p.prefixes, prefix_k.shape[0]);
  p.prefix_k = heads_of(prefix_k);
  p.prefix_v = heads_of(prefix_v);
  p.groups = prefix_k.shape[1];
  p.width = prefix_k.shape[2];
  p.dtype = prefix_k.dtype;
  if (packed != nullptr) read_packed(dims, *packed, p);
  return p;
}

}  // namespace vlakern
