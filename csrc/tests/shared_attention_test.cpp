// Runs shared_attention's CPU kernels without Python on random documents: under sanitizers, and for
// other processors in an emulator. Values and gradients are checked against sums in double.
#include "shared_attention/shared_attention.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "common/cpu_features.h"
#include "tests/array.h"

namespace {

using vlakern::DType;
using vlakern::tests::Array;
using Ints = std::vector<std::int64_t>;

Array int_array(const Ints& values) {
  Array a(DType::kI32, {static_cast<std::int64_t>(values.size())}, {1});
  for (std::size_t i = 0; i < values.size(); ++i) {
    reinterpret_cast<std::int32_t*>(a.bytes.data())[i] = static_cast<std::int32_t>(values[i]);
  }
  return a;
}

struct Problem {
  std::int64_t heads, groups, width, gap;
  DType dtype;
  bool cached, shuffled;
  Ints cu_q{0}, cu_k{0}, kv_end, cu_prefix{0}, index, rows;
  Array q, k, v, prefix_k, prefix_v, grad_out, grad_lse;
  Array i_cu_q, i_cu_k, i_end, i_cu_prefix, i_index, i_rows;

  Array heads_of(std::int64_t rows, std::int64_t count) const {
    const std::int64_t head = width + gap;
    return Array(dtype, {rows, count, width}, {count * head, head, 1});
  }
  std::int64_t queries() const { return cu_q.back(); }
  std::int64_t keys() const { return cu_k.back(); }
  std::int64_t cached_keys() const { return cu_prefix.back(); }
};

Problem make_problem(unsigned seed) {
  std::mt19937 random(seed);
  const auto draw = [&](int low, int high) {
    return std::int64_t{low} + static_cast<std::int64_t>(random() % unsigned(high - low + 1));
  };
  Problem p{};
  p.groups = draw(1, 2);
  p.heads = p.groups * draw(1, 5);
  p.width = 8 * draw(1, 10);
  p.gap = draw(0, 1) * 3;
  p.dtype = seed % 2 == 0 ? DType::kF32 : DType::kBF16;
  p.cached = draw(0, 1) == 1;
  p.shuffled = draw(0, 1) == 1;
  p.cu_q = p.cu_k = p.cu_prefix = {0};
  // Now and then a prefix of several blocks.
  const int longest = seed % 6 == 5 ? 500 : 90;
  for (int n = 0; n < 2; ++n) p.cu_prefix.push_back(p.cu_prefix.back() + draw(0, longest));
  const std::int64_t documents = draw(0, 3);
  for (std::int64_t r = 0; r < documents; ++r) {
    const std::int64_t queries = draw(0, 40), own = draw(0, 70), n = draw(0, 1);
    p.cu_q.push_back(p.cu_q.back() + queries);
    p.cu_k.push_back(p.cu_k.back() + own);
    p.index.push_back(n);
    const std::int64_t most =
        own + (p.cached ? p.cu_prefix[std::size_t(n) + 1] - p.cu_prefix[std::size_t(n)] : 0);
    std::int64_t end = draw(0, 3) == 0 ? 0 : draw(0, static_cast<int>(most));
    for (std::int64_t i = 0; i < queries; ++i) {
      p.kv_end.push_back(end);
      end = std::min(most, end + draw(0, 3));
    }
  }
  for (std::int64_t i = 0; i < p.queries(); ++i) p.rows.push_back(p.queries() - 1 - i);
  p.q = p.heads_of(p.queries(), p.heads);
  p.grad_out = p.heads_of(p.queries(), p.heads);
  p.grad_lse = Array(DType::kF32, {p.queries(), p.heads}, {p.heads, 1});
  p.k = p.heads_of(p.keys(), p.groups);
  p.v = p.heads_of(p.keys(), p.groups);
  p.prefix_k = p.heads_of(p.cached_keys(), p.groups);
  p.prefix_v = p.heads_of(p.cached_keys(), p.groups);
  std::normal_distribution<float> normal;
  for (Array* a : {&p.q, &p.k, &p.v, &p.prefix_k, &p.prefix_v, &p.grad_out, &p.grad_lse}) {
    for (std::int64_t i = 0; i < a->elements(); ++i) a->set(i, normal(random));
  }
  p.i_cu_q = int_array(p.cu_q);
  p.i_cu_k = int_array(p.cu_k);
  p.i_end = int_array(p.kv_end);
  p.i_cu_prefix = int_array(p.cu_prefix);
  p.i_index = int_array(p.index);
  p.i_rows = int_array(p.rows);
  return p;
}

struct Result {
  Array out, lse, grad_q, grad_k, grad_v, grad_prefix_k, grad_prefix_v;
  std::vector<const Array*> all() const {
    return {&out, &lse, &grad_q, &grad_k, &grad_v, &grad_prefix_k, &grad_prefix_v};
  }
};

// The prefixes of a problem, packed; empty where there is no such form.
Array packed_prefix(const Problem& p, const std::string& isa, int threads) {
  const auto [packs, bytes] =
      vlakern::shared_attention_prefix_bytes(p.prefix_k.view, p.i_cu_prefix.view, isa);
  if (!packs) return Array();
  Array packed(DType::kU8, {bytes + 63}, {1});
  packed.view.shape[0] = bytes;
  packed.view.data = (packed.view.data + 63) / 64 * 64;
  vlakern::shared_attention_pack_prefix(p.prefix_k.view, p.prefix_v.view, p.i_cu_prefix.view,
                                        packed.view, isa, threads);
  return packed;
}

Result run(const Problem& p, const std::string& isa, int threads, bool pack) {
  Result r{p.heads_of(p.queries(), p.heads),
           Array(DType::kF32, {p.queries(), p.heads}, {p.heads, 1}),
           p.heads_of(p.queries(), p.heads),
           p.heads_of(p.keys(), p.groups),
           p.heads_of(p.keys(), p.groups),
           p.heads_of(p.cached_keys(), p.groups),
           p.heads_of(p.cached_keys(), p.groups)};
  vlakern::SharedAttentionTensors t{};
  t.q = p.q.view;
  t.k = p.k.view;
  t.v = p.v.view;
  t.cu_q = p.i_cu_q.view;
  t.cu_k = p.i_cu_k.view;
  t.kv_end = p.i_end.view;
  t.out = r.out.view;
  t.lse = r.lse.view;
  vlakern::SharedAttentionGradients g{};
  g.grad_out = p.grad_out.view;
  g.grad_lse = p.grad_lse.view;
  g.grad_q = r.grad_q.view;
  g.grad_k = r.grad_k.view;
  g.grad_v = r.grad_v.view;
  if (p.shuffled) t.rows = p.i_rows.view;
  if (p.cached) {
    t.cu_prefix = p.i_cu_prefix.view;
    t.prefix_index = p.i_index.view;
    t.prefix_k = p.prefix_k.view;
    t.prefix_v = p.prefix_v.view;
    g.grad_prefix_k = r.grad_prefix_k.view;
    g.grad_prefix_v = r.grad_prefix_v.view;
  }
  Array packed;
  if (pack && p.cached) packed = packed_prefix(p, isa, threads);
  if (packed.view.rank == 1) t.packed = packed.view;
  vlakern::shared_attention_cpu(t, 0.3f, isa, threads);
  vlakern::shared_attention_backward_cpu(t, g, 0.3f, isa, threads);
  return r;
}

// Sums in double: out, lse, and the gradients of every tensor, element by element as in the arrays.
struct Exact {
  std::vector<double> out, lse, grad_q, grad_k, grad_v, grad_prefix_k, grad_prefix_v;
};

Exact exact(const Problem& p) {
  const std::int64_t head = p.width + p.gap;
  const auto size = [](const Array& a) { return std::vector<double>(std::size_t(a.elements())); };
  Exact e{size(p.q), size(p.grad_lse), size(p.q),       size(p.k),
          size(p.v), size(p.prefix_k), size(p.prefix_v)};
  for (std::size_t r = 0; r + 1 < p.cu_q.size(); ++r) {
    const auto n = std::size_t(p.index[r]);
    const std::int64_t cached = p.cached ? p.cu_prefix[n + 1] - p.cu_prefix[n] : 0;
    for (std::int64_t i = p.cu_q[r]; i < p.cu_q[r + 1]; ++i) {
      const std::int64_t t = p.shuffled ? p.rows[std::size_t(i)] : i;
      for (std::int64_t h = 0; h < p.heads; ++h) {
        const std::int64_t group = h / (p.heads / p.groups), at = (t * p.heads + h) * head;
        const auto key = [&](std::int64_t j) {
          const std::int64_t row = j < cached ? p.cu_prefix[n] + j : p.cu_k[r] + j - cached;
          return (row * p.groups + group) * head;
        };
        std::vector<double> weight, grad_p;
        double sum = 0, mean = 0;
        for (std::int64_t j = 0; j < p.kv_end[std::size_t(i)]; ++j) {
          const Array& k = j < cached ? p.prefix_k : p.k;
          const Array& v = j < cached ? p.prefix_v : p.v;
          double score = 0, product = 0;
          for (std::int64_t d = 0; d < p.width; ++d) {
            score += double{p.q.get(at + d)} * k.get(key(j) + d);
            product += double{p.grad_out.get(at + d)} * v.get(key(j) + d);
          }
          weight.push_back(std::exp(double{0.3f} * score));
          grad_p.push_back(product);
          sum += weight.back();
          mean += weight.back() * product;
        }
        e.lse[std::size_t(t * p.heads + h)] = std::log(sum);
        const double delta = mean / sum - p.grad_lse.get(t * p.heads + h);
        for (std::size_t j = 0; j < weight.size(); ++j) {
          const std::int64_t row = key(std::int64_t(j));
          const bool before = std::int64_t(j) < cached;
          const Array& k = before ? p.prefix_k : p.k;
          const Array& v = before ? p.prefix_v : p.v;
          const double w = weight[j] / sum, ds = double{0.3f} * w * (grad_p[j] - delta);
          for (std::int64_t d = 0; d < p.width; ++d) {
            e.out[std::size_t(at + d)] += w * v.get(row + d);
            e.grad_q[std::size_t(at + d)] += ds * k.get(row + d);
            (before ? e.grad_prefix_k : e.grad_k)[std::size_t(row + d)] += ds * p.q.get(at + d);
            (before ? e.grad_prefix_v : e.grad_v)[std::size_t(row + d)] +=
                w * p.grad_out.get(at + d);
          }
        }
      }
    }
  }
  return e;
}

// Written so that NaN, the poison, is wrong; gaps between heads are not looked at.
bool close(const char* name, const Array& found, const std::vector<double>& expected, double unit) {
  const auto& shape = found.view.shape;
  double largest = 1;
  for (double x : expected) largest = std::isfinite(x) ? std::max(largest, std::fabs(x)) : largest;
  const std::int64_t depth = found.view.rank == 3 ? shape[2] : 1;
  for (std::int64_t i = 0; i < shape[0] * shape[1] * depth; ++i) {
    const std::int64_t at = i / (shape[1] * depth) * found.view.stride[0] +
                            i / depth % shape[1] * found.view.stride[1] + i % depth;
    const double want = expected[std::size_t(at)], got = found.get(at);
    if (got != want && !(std::fabs(got - want) <= unit * largest)) {
      std::printf("%s[%d]: %g, expected %g\n", name, int(i), got, want);
      return false;
    }
  }
  return true;
}

bool right(const Problem& p, const Result& r) {
  const Exact e = exact(p);
  const double unit = p.dtype == DType::kF32 ? 3e-6 : 2e-2;
  bool good = close("out", r.out, e.out, unit) && close("lse", r.lse, e.lse, 3e-6) &&
              close("grad_q", r.grad_q, e.grad_q, unit) &&
              close("grad_k", r.grad_k, e.grad_k, unit) &&
              close("grad_v", r.grad_v, e.grad_v, unit);
  if (!p.cached) return good;
  return good && close("grad_prefix_k", r.grad_prefix_k, e.grad_prefix_k, unit) &&
         close("grad_prefix_v", r.grad_prefix_v, e.grad_prefix_v, unit);
}

}  // namespace

int main(int count, char** words) {
  const int seeds = count > 1 ? std::atoi(words[1]) : 40;
  for (int seed = 0; seed < seeds; ++seed) {
    const Problem p = make_problem(static_cast<unsigned>(seed));
    for (const std::string& isa : vlakern::isas()) {
      const Result one = run(p, isa, 1, false), three = run(p, isa, 3, true);
      bool same = right(p, one);
      for (std::size_t i = 0; i < one.all().size(); ++i) {
        same = same && one.all()[i]->bytes == three.all()[i]->bytes;
      }
      if (!same) {
        std::printf("seed %d: %s is wrong, or differs on three threads with packed prefixes\n",
                    seed, isa.c_str());
        return 1;
      }
    }
  }
  std::printf("%d problems:", seeds);
  for (const std::string& isa : vlakern::isas()) std::printf(" %s", isa.c_str());
  std::printf("\n");
  return 0;
}
