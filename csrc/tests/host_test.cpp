// Runs the CPU kernels without Python: under sanitizers, and for other processors in an emulator.
// Reads one case per line: rows positions slots x_dtype v_dtype c0 c1 c_tau frozen mask tau gap
// step (frozen 0/1, mask 0/1, tau 1 per position, gap elements between positions, step between
// slots).
#include <cmath>
#include <cstdio>
#include <iostream>
#include <random>
#include <vector>

#include "common/cpu_features.h"
#include "ode_step/ode_step.h"
#include "tests/array.h"

namespace {

using vlakern::DType;
using vlakern::tests::Array;

struct Case {
  std::int64_t rows, positions, slots;
  DType x_dtype, v_dtype;
  float c0, c1, c_tau;
  int frozen, mask, tau_per_position;
  std::int64_t gap, step;
};

bool read_case(std::istream& in, Case& c) {
  std::string x, v;
  in >> c.rows >> c.positions >> c.slots >> x >> v >> c.c0 >> c.c1 >> c.c_tau >> c.frozen >>
      c.mask >> c.tau_per_position >> c.gap >> c.step;
  if (!in) return false;
  c.x_dtype = vlakern::dtype_from_name(x.c_str());
  c.v_dtype = vlakern::dtype_from_name(v.c_str());
  return true;
}

struct Problem {
  Array x, v, v0, tau, dtau, frozen, frozen_len, mask;
};

Array chunk(const Case& c, DType dtype) {
  const std::int64_t position = c.slots * c.step + c.gap;
  return Array(dtype, {c.rows, c.positions, c.slots}, {c.positions * position, position, c.step});
}

Array time(const Case& c) {
  const std::int64_t columns = c.tau_per_position ? c.positions : 1;
  return Array(DType::kF32, {c.rows, columns}, {columns, 1});
}

Problem make_problem(const Case& c, std::mt19937& random) {
  std::normal_distribution<float> normal;
  const auto fill = [&](Array& a) {
    for (std::int64_t i = 0; i < a.elements(); ++i) a.set(i, normal(random));
  };
  Problem p{chunk(c, c.x_dtype),
            chunk(c, c.v_dtype),
            chunk(c, c.v_dtype),
            time(c),
            Array(DType::kF32, {c.rows}, {1}),
            chunk(c, c.x_dtype),
            Array(DType::kI32, {c.rows}, {1}),
            Array(DType::kU8, {c.rows, c.slots}, {c.slots, 1})};
  for (Array* a : {&p.x, &p.v, &p.v0, &p.tau, &p.dtau, &p.frozen}) fill(*a);
  for (unsigned char& byte : p.mask.bytes) byte = random() % 3 != 0;
  auto* lengths = reinterpret_cast<std::int32_t*>(p.frozen_len.bytes.data());
  for (std::int64_t b = 0; b < c.rows; ++b) lengths[b] = static_cast<int>(random() % 7) - 1;
  return p;
}

struct Result {
  Array x_out, tau_out;
};

Result run(const Case& c, const Problem& p, const std::string& isa, int threads) {
  Result out{chunk(c, c.x_dtype), time(c)};
  vlakern::OdeStepTensors t{p.x.view, p.v.view, {}, p.tau.view,     p.dtau.view,
                            {},       {},       {}, out.x_out.view, out.tau_out.view};
  if (c.c0 != 0) t.v0 = p.v0.view;
  if (c.frozen) t.frozen = p.frozen.view;
  if (c.frozen) t.frozen_len = p.frozen_len.view;
  if (c.mask) t.slot_mask = p.mask.view;
  vlakern::ode_step_cpu(t, c.tau_per_position != 0, {c.c0, c.c1, c.c_tau}, isa, threads);
  return out;
}

// The definition in double, element by element; the rounding to x's dtype is the last step.
bool right(const Case& c, const Problem& p, const Result& out) {
  const double ulp = c.x_dtype == DType::kF32 ? 1e-6 : c.x_dtype == DType::kBF16 ? 8e-3 : 1e-3;
  const auto* lengths = reinterpret_cast<const std::int32_t*>(p.frozen_len.bytes.data());
  const auto& stride = p.x.view.stride;
  for (std::int64_t b = 0; b < c.rows; ++b) {
    for (std::int64_t h = 0; h < c.positions; ++h) {
      for (std::int64_t a = 0; a < c.slots; ++a) {
        const std::int64_t i = b * stride[0] + h * stride[1] + a * stride[2];
        const double slope = double{c.c0} * p.v0.get(i) + double{c.c1} * p.v.get(i);
        double expected = p.x.get(i) + p.dtau.get(b) * slope;
        if (c.mask && p.mask.bytes[static_cast<std::size_t>(b * c.slots + a)] == 0) {
          expected = p.x.get(i);
        }
        if (c.frozen && h < lengths[b]) expected = p.frozen.get(i);
        // Written so that NaN, the poison, is wrong.
        if (!(std::fabs(out.x_out.get(i) - expected) <= ulp * (1 + 4 * std::fabs(expected)))) {
          std::printf("b=%d h=%d a=%d: %g, expected %g\n", int(b), int(h), int(a),
                      double{out.x_out.get(i)}, expected);
          return false;
        }
      }
    }
  }
  return true;
}

}  // namespace

int main() {
  std::mt19937 random(1);
  Case c{};
  int cases = 0;
  while (read_case(std::cin, c)) {
    ++cases;
    const Problem p = make_problem(c, random);
    const Result scalar = run(c, p, "scalar", 1);
    if (!right(c, p, scalar)) {
      std::printf("case %d: scalar is wrong\n", cases);
      return 1;
    }
    for (const std::string& isa : vlakern::isas()) {
      for (int threads : {1, 3}) {
        const Result other = run(c, p, isa, threads);
        if (other.x_out.bytes != scalar.x_out.bytes ||
            other.tau_out.bytes != scalar.tau_out.bytes) {
          std::printf("case %d: %s on %d threads differs from scalar\n", cases, isa.c_str(),
                      threads);
          return 1;
        }
      }
    }
  }
  std::printf("%d cases:", cases);
  for (const std::string& isa : vlakern::isas()) std::printf(" %s", isa.c_str());
  std::printf("\n");
  return cases > 0 ? 0 : 1;
}
