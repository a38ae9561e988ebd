// Runs flow_mix and flow_loss without Python: under sanitizers, and for other processors in an
// emulator. Known answers of the generator; then random problems, strides and dtypes, whose results
// must have the scalar kernel's bits on every instruction set and thread count, and whose loss must
// be the sum in double of what the formula says.
#include "flow_loss/flow_loss.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "common/cpu_features.h"
#include "common/philox.h"
#include "common/vec_scalar.h"
#include "tests/array.h"

namespace {

using vlakern::DType;
using vlakern::tests::Array;

constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

std::mt19937 engine(7);

std::int64_t below(std::int64_t count) {
  return static_cast<std::int64_t>(engine() % static_cast<std::uint32_t>(count));
}

void fail(int number, const char* what) {
  std::printf("problem %d: %s\n", number, what);
  std::exit(1);
}

Array chunk(DType dtype, std::int64_t rows, std::int64_t h, std::int64_t a, std::int64_t gap) {
  const std::int64_t position = a * (1 + gap) + gap;
  Array made(dtype, {rows, h, a}, {h * position, position, 1 + gap});
  std::normal_distribution<float> normal;
  if (dtype != DType::kU8) {
    for (std::int64_t i = 0; i < made.elements(); ++i) made.set(i, normal(engine));
  }
  return made;
}

float at(const Array& t, std::int64_t r, std::int64_t h, std::int64_t a) {
  return t.get(r * t.view.stride[0] + h * t.view.stride[1] + a * t.view.stride[2]);
}

struct Problem {
  std::int64_t samples, per_sample, positions, slots, groups;
  DType dtype;
  bool given, weighted_slots, tau_given;
  Array action, noise, rows, slot_weights, tau, velocity, mask, group;

  vlakern::FlowTensors source() const {
    vlakern::FlowTensors t{action.view, {}, {}, {}, 123456789012345};
    if (given) t.noise = noise.view;
    if (!given) t.rows = rows.view;
    if (weighted_slots) t.slots = slot_weights.view;
    return t;
  }
  std::int64_t row_count() const { return samples * per_sample; }
};

Problem draw(int number) {
  const bool large = number % 100 == 99;  // enough for several threads
  const std::int64_t gap = number % 2, b = large ? 40 : below(4), s = 1 + below(3);
  const std::int64_t h = large ? 33 : below(6), a = large ? 100 : below(40), r = b * s;
  Problem p{b,
            s,
            h,
            a,
            1 + below(3),
            kDTypes[number % 3],
            number % 4 == 1,
            number % 5 < 2,
            number % 3 == 0,
            chunk(DType::kF32, b, h, a, gap),
            chunk(DType::kF32, r, h, a, gap),
            Array(DType::kI64, {r}, {1}),
            Array(DType::kF32, {b, a}, {a, 1}),
            Array(DType::kF32, {r, h}, {h, 1}),
            chunk(kDTypes[number % 3], r, h, a, gap),
            chunk(number % 2 == 0 ? DType::kF32 : DType::kU8, b, h, a, gap),
            Array(DType::kI32, {b}, {1})};
  for (std::int64_t i = 0; i < r; ++i) {
    reinterpret_cast<std::int64_t*>(p.rows.bytes.data())[i] = below(1 << 30) << 20;
  }
  for (std::int64_t i = 0; i < b; ++i) {
    reinterpret_cast<std::int32_t*>(p.group.bytes.data())[i] =
        static_cast<std::int32_t>(below(p.groups));
  }
  for (std::int64_t i = 0; i < p.slot_weights.elements(); ++i) {
    p.slot_weights.set(i, static_cast<float>(below(2)));
  }
  for (std::int64_t i = 0; i < p.tau.elements(); ++i) p.tau.set(i, 0.01f * below(100));
  for (std::int64_t i = 0; i < p.mask.elements(); ++i) {
    if (p.mask.view.dtype == DType::kU8) {
      p.mask.bytes[static_cast<std::size_t>(i)] = static_cast<unsigned char>(below(2));
    } else {
      p.mask.set(i, static_cast<float>(below(3)));
    }
  }
  return p;
}

struct Results {
  Array x, tau, loss, coefficients, gradient;
  bool operator==(const Results& o) const {
    return x.bytes == o.x.bytes && tau.bytes == o.tau.bytes && loss.bytes == o.loss.bytes &&
           coefficients.bytes == o.coefficients.bytes && gradient.bytes == o.gradient.bytes;
  }
};

Results run(const Problem& p, const std::string& isa, int threads) {
  const std::int64_t r = p.row_count(), h = p.positions, a = p.slots;
  const std::int64_t columns = p.tau_given ? h : 1;
  Results f{Array(p.dtype, {r, h, a}, {h * a, a, 1}),
            Array(DType::kF32, {r, columns}, {columns, 1}), Array(DType::kF32, {1}, {1}),
            Array(DType::kF32, {p.groups}, {1}), Array(p.dtype, {r, h, a}, {h * a, a, 1})};
  vlakern::FlowMixTensors mix{{}, f.x.view, f.tau.view};
  if (p.tau_given) mix.tau = p.tau.view;
  const vlakern::FlowTau law{vlakern::TauLaw::kBeta, 1.5, 0.999};
  vlakern::flow_mix_cpu(vlakern::flow_mix_params(p.source(), mix, law), isa, threads);
  vlakern::FlowLossTensors t{p.velocity.view,     p.mask.view, p.group.view,   {},
                             f.coefficients.view, f.loss.view, f.gradient.view};
  const auto params = vlakern::flow_loss_params(p.source(), t);
  vlakern::FlowParams forward = params;
  forward.out = nullptr;
  vlakern::flow_loss_cpu(forward, isa, threads);
  vlakern::flow_loss_gradient_cpu(params, 2.0f, isa, threads);
  return f;
}

// Of given noise: the formula, in double.
double expected_loss(const Problem& p) {
  std::vector<double> errors(static_cast<std::size_t>(p.groups)), masks(errors.size());
  std::vector<bool> occurs(errors.size());
  for (std::int64_t r = 0; r < p.row_count(); ++r) {
    const std::int64_t b = r / p.per_sample;
    const auto g =
        static_cast<std::size_t>(reinterpret_cast<const std::int32_t*>(p.group.bytes.data())[b]);
    occurs[g] = true;
    for (std::int64_t i = 0; i < p.positions * p.slots; ++i) {
      const std::int64_t h = i / p.slots, a = i % p.slots;
      double z = at(p.noise, r, h, a);
      if (p.weighted_slots) z *= p.slot_weights.get(b * p.slots + a);
      const std::int64_t place =
          b * p.mask.view.stride[0] + h * p.mask.view.stride[1] + a * p.mask.view.stride[2];
      const bool bytes = p.mask.view.dtype == DType::kU8;
      const double m = bytes ? p.mask.bytes[static_cast<std::size_t>(place)] : p.mask.get(place);
      const double e = at(p.velocity, r, h, a) - (at(p.action, b, h, a) - z);
      errors[g] += m * e * e;
      masks[g] += m;
    }
  }
  double sum = 0, count = 0;
  for (std::size_t g = 0; g < errors.size(); ++g) {
    if (!occurs[g]) continue;
    sum += errors[g] / (masks[g] + 1e-8);
    count += 1;
  }
  return count == 0 ? 0 : sum / count;
}

void check_known_answer() {
  std::uint32_t words[] = {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344};
  constexpr std::uint32_t kWords[] = {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1};
  vlakern::philox_rounds<vlakern::VecScalar>(words, 0xa4093822, 0x299f31d0);
  if (!std::equal(words, words + 4, kWords)) fail(-1, "the generator's words are wrong");
}

}  // namespace

int main() {
  constexpr int kProblems = 200;
  check_known_answer();
  for (int number = 0; number < kProblems; ++number) {
    const Problem p = draw(number);
    const Results scalar = run(p, "scalar", 1);
    if (p.given) {
      const double expected = expected_loss(p);
      const double found = scalar.loss.get(0);
      if (!(std::fabs(found - expected) <= 1e-6 * (1 + expected)))
        fail(number, "the loss is wrong");
    }
    for (const std::string& isa : vlakern::isas()) {
      for (const int threads : {1, 3}) {
        if (!(run(p, isa, threads) == scalar)) fail(number, isa.c_str());
      }
    }
  }
  std::printf("%d problems:", kProblems);
  for (const std::string& isa : vlakern::isas()) std::printf(" %s", isa.c_str());
  std::printf("\n");
  return 0;
}
