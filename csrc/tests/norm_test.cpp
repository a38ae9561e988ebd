// Runs norm without Python: under sanitizers, and for other processors in an emulator. Random
// problems, values against double, and the scalar kernel's bits from every instruction set on one
// and three threads, forward and backward.
#include "norm/norm.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "tests/array.h"

namespace {

using vlakern::DType;
using vlakern::Tensor;
using vlakern::tests::Array;
using Maybe = std::optional<Tensor>;

struct Problem {
  std::int64_t rows, width, groups;
  std::string kind;
  DType dtype;
  bool weight, bias, scale, shift, residual, gate, indexed;
  Array x, added, dy, dh, vectors[2], modulations[3], row_group;
};

Problem make_problem(std::mt19937& random) {
  std::normal_distribution<float> normal;
  const auto pick = [&](int n) { return static_cast<std::int64_t>(random() % unsigned(n)); };
  const auto matrix = [&](DType dtype, std::int64_t rows, std::int64_t width) {
    const std::int64_t gap = pick(2) * 3;
    Array a(dtype, {rows, width}, {width + gap, 1});
    for (std::int64_t i = 0; i < a.elements(); ++i) a.set(i, normal(random));
    return a;
  };
  const DType dtypes[] = {DType::kF32, DType::kBF16, DType::kF16};
  const char* kinds[] = {"rms", "rms_plus_one", "layer"};
  Problem p{};
  p.groups = 1 + pick(4);
  p.rows = p.groups * pick(20);
  p.width = 1 + pick(200);
  p.kind = kinds[pick(3)];
  p.dtype = dtypes[pick(3)];
  p.weight = pick(2) != 0;
  p.bias = p.kind == "layer" && pick(2) != 0;
  p.scale = pick(2) != 0;
  p.shift = pick(2) != 0;
  p.residual = pick(2) != 0;
  p.gate = p.residual && pick(2) != 0;
  p.indexed = pick(2) != 0 && (p.scale || p.shift || p.gate);
  for (Array* a : {&p.x, &p.added, &p.dy, &p.dh}) *a = matrix(p.dtype, p.rows, p.width);
  for (Array& a : p.vectors) {
    a = matrix(dtypes[pick(3)], 1, p.width);
    a.view.rank = 1;
    a.view.shape[0] = p.width;
    a.view.stride[0] = 1;
  }
  for (Array& a : p.modulations) a = matrix(dtypes[pick(3)], p.groups, p.width);
  p.row_group = Array(DType::kI32, {p.rows}, {1});
  auto* index = reinterpret_cast<std::int32_t*>(p.row_group.bytes.data());
  for (std::int64_t r = 0; r < p.rows; ++r) index[r] = static_cast<int>(pick(int(p.groups)));
  return p;
}

Maybe given(bool wanted, const Array& a) { return wanted ? Maybe(a.view) : Maybe(); }

vlakern::NormTensors tensors(const Problem& p, const Array& y, const Maybe& h) {
  return {p.x.view,
          given(p.weight, p.vectors[0]),
          given(p.bias, p.vectors[1]),
          given(p.scale, p.modulations[0]),
          given(p.shift, p.modulations[1]),
          given(p.gate, p.modulations[2]),
          given(p.residual, p.added),
          given(p.indexed, p.row_group),
          y.view,
          h};
}

struct Result {
  Array y, h, dx, dadded, sums[5];
  bool operator==(const Result& other) const {
    bool same = y.bytes == other.y.bytes && h.bytes == other.h.bytes &&
                dx.bytes == other.dx.bytes && dadded.bytes == other.dadded.bytes;
    for (int i = 0; i < 5; ++i) same = same && sums[i].bytes == other.sums[i].bytes;
    return same;
  }
};

Result run(const Problem& p, const std::string& isa, int threads) {
  constexpr float kEps = 1e-5f;
  const auto dense = [&](DType dtype, std::int64_t rows) {
    return Array(dtype, {rows, p.width}, {p.width, 1});
  };
  Result r{dense(p.dtype, p.rows),
           dense(p.dtype, p.rows),
           dense(p.dtype, p.rows),
           dense(p.dtype, p.rows),
           {}};
  const vlakern::Isa chosen = vlakern::select_isa(isa);
  const vlakern::NormTensors t = tensors(p, r.y, given(p.residual, r.h));
  vlakern::norm_cpu(vlakern::norm_params(t, p.kind, kEps), chosen, threads);

  const bool wanted[] = {p.weight, p.bias, p.scale, p.shift, p.gate};
  for (int i = 0; i < 5; ++i) r.sums[i] = dense(DType::kF32, i < 2 ? 1 : p.groups);
  vlakern::NormTensors back = t;
  back.x = p.residual ? r.h.view : p.x.view;
  const bool modulated = p.scale || p.shift || p.gate;
  const std::int64_t groups = modulated ? p.groups : 1;
  const std::int64_t kinds = vlakern::norm_sums(p.weight || p.scale, p.bias || p.shift, p.gate);
  const std::int64_t runs = groups * vlakern::norm_runs(p.rows, groups);
  const Array partial(DType::kF32, {kinds, runs, p.width}, {runs * p.width, p.width, 1});
  Maybe sums[5];
  for (int i = 0; i < 5; ++i) {
    if (!wanted[i]) continue;
    sums[i] = r.sums[i].view;
    if (i >= 2) continue;
    sums[i]->rank = 1;
    sums[i]->shape[0] = p.width;
    sums[i]->stride[0] = 1;
  }
  const vlakern::NormGradientTensors g{p.dy.view, given(p.residual, p.dh),
                                       r.dx.view, given(p.residual, r.dadded),
                                       sums[0],   sums[1],
                                       sums[2],   sums[3],
                                       sums[4],   partial.view};
  vlakern::norm_backward_cpu(vlakern::norm_gradient_params(back, g, p.kind, kEps), chosen, threads);
  return r;
}

// The definition of y in double, from the rounded h.
bool right(const Problem& p, const Result& found) {
  const double ulp = p.dtype == DType::kF32 ? 1e-5 : p.dtype == DType::kBF16 ? 8e-3 : 1e-3;
  const auto* index = reinterpret_cast<const std::int32_t*>(p.row_group.bytes.data());
  const bool modulated = p.scale || p.shift || p.gate;
  for (std::int64_t r = 0; r < p.rows; ++r) {
    const std::int64_t group = p.indexed ? index[r] : modulated ? r / (p.rows / p.groups) : 0;
    const auto modulation = [&](int i, std::int64_t m) {
      return double{p.modulations[i].get(group * p.modulations[i].view.stride[0] + m)};
    };
    const auto h = [&](std::int64_t m) {
      return double{p.residual ? found.h.get(r * p.width + m)
                               : p.x.get(r * p.x.view.stride[0] + m)};
    };
    double mean = 0, square = 0;
    for (std::int64_t m = 0; m < p.width; ++m) mean += h(m) / double(p.width);
    if (p.kind != "layer") mean = 0;
    for (std::int64_t m = 0; m < p.width; ++m) square += std::pow(h(m) - mean, 2);
    const double root = std::sqrt(square / double(p.width) + 1e-5);
    for (std::int64_t m = 0; m < p.width; ++m) {
      double y = (h(m) - mean) / root;
      if (p.weight) y *= p.vectors[0].get(m) + (p.kind == "rms_plus_one" ? 1.0 : 0.0);
      if (p.bias) y += p.vectors[1].get(m);
      if (p.scale) y *= 1 + modulation(0, m);
      if (p.shift) y += modulation(1, m);
      // Written so that NaN, the poison, is wrong.
      if (!(std::fabs(found.y.get(r * p.width + m) - y) <= ulp * (1 + 4 * std::fabs(y)))) {
        std::printf("row %d column %d: %g, expected %g\n", int(r), int(m),
                    double{found.y.get(r * p.width + m)}, y);
        return false;
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
  std::printf("%d norms\n", problems);
  return 0;
}
