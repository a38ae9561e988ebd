// Runs qkv_prep without Python: under sanitizers, and for other processors in an emulator. Random
// problems, values against double, and the scalar kernel's bits from every instruction set on one
// and three threads, forward and backward.
#include "qkv_prep/qkv_prep.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>

#include "tests/array.h"

namespace {

using vlakern::DType;
using vlakern::Tensor;
using vlakern::tests::Array;

constexpr std::int64_t kOffset = 2;  // rows before the cache's part

struct Expert {
  std::int64_t tokens;
  Array q, k, v, rows, q_weight, k_weight, dq;
};

struct Problem {
  std::int64_t tokens, heads, groups, half;
  DType dtype;
  bool norm, plus_one;
  Array cos, sin, dk, dv;
  std::vector<Expert> experts;
};

Array heads_of(DType dtype, std::int64_t rows, std::int64_t heads, std::int64_t width) {
  return Array(dtype, {rows, heads, width}, {heads * width + 3, width, 1});
}

Problem make_problem(std::mt19937& random) {
  std::normal_distribution<float> normal;
  const auto pick = [&](int n) { return static_cast<std::int64_t>(random() % unsigned(n)); };
  const auto filled = [&](Array a) {
    for (std::int64_t i = 0; i < a.elements(); ++i) a.set(i, normal(random));
    return a;
  };
  const DType dtypes[] = {DType::kF32, DType::kBF16, DType::kF16};
  Problem p{};
  p.groups = 1 + pick(3);
  p.heads = p.groups * (1 + pick(3));
  p.half = 1 + pick(40);
  p.dtype = dtypes[pick(3)];
  p.norm = pick(2) != 0;
  p.plus_one = pick(2) != 0;
  const std::int64_t width = 2 * p.half;
  for (std::int64_t i = 0; i <= pick(3); ++i) {
    Expert e{pick(50), {}, {}, {}, {}, {}, {}, {}};
    e.q = filled(heads_of(p.dtype, e.tokens, p.heads, width));
    e.k = filled(heads_of(p.dtype, e.tokens, p.groups, width));
    e.v = filled(heads_of(p.dtype, e.tokens, p.groups, width));
    e.dq = filled(heads_of(p.dtype, e.tokens, p.heads, width));
    e.q_weight = filled(Array(dtypes[pick(3)], {width}, {1}));
    e.k_weight = filled(Array(dtypes[pick(3)], {width}, {1}));
    p.tokens += e.tokens;
    p.experts.push_back(std::move(e));  // a copy would leave the views behind
  }
  std::vector<std::int32_t> order(static_cast<std::size_t>(p.tokens));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  auto next = order.begin();
  for (Expert& e : p.experts) {
    e.rows = Array(DType::kI32, {e.tokens}, {1});
    std::copy_n(next, e.tokens, reinterpret_cast<std::int32_t*>(e.rows.bytes.data()));
    next += e.tokens;
  }
  p.cos = filled(Array(DType::kF32, {p.tokens, p.half}, {p.half + 1, 1}));
  p.sin = filled(Array(DType::kF32, {p.tokens, p.half}, {p.half, 1}));
  p.dk = filled(heads_of(p.dtype, p.tokens, p.groups, width));
  p.dv = filled(heads_of(p.dtype, p.tokens, p.groups, width));
  return p;
}

struct Result {
  std::vector<Array> all;  // k, v, then of every expert q and its gradients, then those of angles
  bool operator==(const Result& other) const {
    return std::equal(all.begin(), all.end(), other.all.begin(), other.all.end(),
                      [](const Array& a, const Array& b) { return a.bytes == b.bytes; });
  }
};

vlakern::QkvPrepTensors tensors(const Problem& p) {
  vlakern::QkvPrepTensors t{{}, {}, p.cos.view, p.sin.view, p.dk.view, p.dv.view};
  for (const Expert& e : p.experts) {
    t.experts.push_back({e.q.view, e.k.view, e.v.view, e.rows.view, {}, {}});
    t.q_outs.push_back(e.dq.view);
    if (p.norm) t.experts.back().q_weight = e.q_weight.view;
    if (p.norm) t.experts.back().k_weight = e.k_weight.view;
  }
  return t;
}

Result run(const Problem& p, const std::string& isa, int threads) {
  constexpr float kEps = 1e-5f;
  const std::int64_t width = 2 * p.half;
  const vlakern::Isa chosen = vlakern::select_isa(isa);
  vlakern::QkvPrepTensors forward = tensors(p), backward = forward;
  Result r;
  const auto add = [&](Array a) {
    r.all.push_back(std::move(a));
    return r.all.back().view;  // its bytes stay where they are when the list grows
  };
  forward.k_out = add(heads_of(p.dtype, p.tokens + 5, p.groups, width));
  forward.v_out = add(heads_of(p.dtype, p.tokens + 5, p.groups, width));
  std::vector<vlakern::QkvGradientTensors> gradients;
  std::vector<Array> partials;
  for (std::size_t i = 0; i < p.experts.size(); ++i) {
    const std::int64_t tokens = p.experts[i].tokens;
    forward.q_outs[i] = add(heads_of(p.dtype, tokens, p.heads, width));
    vlakern::QkvGradientTensors g{};
    g.dq = add(heads_of(p.dtype, tokens, p.heads, width));
    g.dk = add(heads_of(p.dtype, tokens, p.groups, width));
    g.dv = add(heads_of(p.dtype, tokens, p.groups, width));
    if (p.norm) g.q_weight = add(Array(DType::kF32, {width}, {1}));
    if (p.norm) g.k_weight = add(Array(DType::kF32, {width}, {1}));
    const std::int64_t runs = vlakern::qkv_prep_runs(tokens);
    partials.emplace_back(DType::kF32, std::vector<std::int64_t>{runs, 2, width},
                          std::vector<std::int64_t>{2 * width, width, 1});
    g.partial = partials.back().view;
    gradients.push_back(g);
  }
  const Tensor dcos = add(Array(DType::kF32, {p.tokens, p.half}, {p.half, 1}));
  const Tensor dsin = add(Array(DType::kF32, {p.tokens, p.half}, {p.half, 1}));
  vlakern::qkv_prep_cpu(vlakern::qkv_prep_params(forward, kOffset, kEps, p.plus_one), chosen,
                        threads);
  vlakern::qkv_prep_backward_cpu(
      vlakern::qkv_prep_gradient_params(backward, gradients, dcos, dsin, kEps, p.plus_one), chosen,
      threads);
  return r;
}

// The definition of k in double.
bool right(const Problem& p, const Result& found) {
  const double ulp = p.dtype == DType::kF32 ? 1e-5 : p.dtype == DType::kBF16 ? 8e-3 : 1e-3;
  const Array& out = found.all[0];
  for (const Expert& e : p.experts) {
    const auto* rows = reinterpret_cast<const std::int32_t*>(e.rows.bytes.data());
    for (std::int64_t place = 0; place < e.tokens * p.groups; ++place) {
      const std::int64_t i = place / p.groups, head = place % p.groups, row = rows[i];
      const std::int64_t from = i * e.k.view.stride[0] + head * e.k.view.stride[1];
      const std::int64_t to = (row + kOffset) * out.view.stride[0] + head * out.view.stride[1];
      double square = 0;
      for (std::int64_t d = 0; d < 2 * p.half; ++d) square += std::pow(e.k.get(from + d), 2);
      const double root = p.norm ? std::sqrt(square / double(2 * p.half) + 1e-5) : 1.0;
      const auto n = [&](std::int64_t d) {
        const double w = p.norm ? e.k_weight.get(d) + (p.plus_one ? 1.0 : 0.0) : 1.0;
        return e.k.get(from + d) / root * w;
      };
      for (std::int64_t d = 0; d < p.half; ++d) {
        const double c = p.cos.get(row * (p.half + 1) + d), s = p.sin.get(row * p.half + d);
        const double low = n(d) * c - n(d + p.half) * s, high = n(d + p.half) * c + n(d) * s;
        const double scale = 1 + std::fabs(n(d)) + std::fabs(n(d + p.half));
        // Written so that NaN, the poison, is wrong.
        if (!(std::fabs(out.get(to + d) - low) <= 4 * ulp * scale) ||
            !(std::fabs(out.get(to + d + p.half) - high) <= 4 * ulp * scale)) {
          std::printf("row %d head %d pair %d: %g, expected %g\n", int(row), int(head), int(d),
                      double{out.get(to + d)}, low);
          return false;
        }
      }
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  std::mt19937 random(1);
  const int problems = argc > 1 ? std::atoi(argv[1]) : 200;
  for (int i = 0; i < problems; ++i) {
    const Problem p = make_problem(random);
    const Result scalar = run(p, "scalar", 1);
    if (!right(p, scalar)) return std::printf("problem %d is wrong\n", i), 1;
    for (const std::string& isa : vlakern::isas()) {
      for (int threads : {1, 3}) {
        if (run(p, isa, threads) == scalar) continue;
        return std::printf("problem %d: %s on %d threads differs\n", i, isa.c_str(), threads), 1;
      }
    }
  }
  std::printf("%d preparations\n", problems);
  return 0;
}
