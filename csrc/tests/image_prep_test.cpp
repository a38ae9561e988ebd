// Runs image_prep without Python: under sanitizers, and for other processors in an emulator. Draws
// problems with random tables, sizes and strides, computes each output by itself, one by one, and
// compares every instruction set on one and three threads; then breaks tables, which must be
// refused.
#include "image_prep/image_prep.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "common/error.h"
#include "tests/array.h"

namespace {

using vlakern::DType;
using vlakern::tests::Array;

struct Problem {
  Array images, y_first, y_weights, x_first, x_weights, out;
  vlakern::ImagePrepSettings s;
  bool whole;
};

std::mt19937 engine(1);

std::int64_t below(std::int64_t count) {
  return static_cast<std::int64_t>(engine() % static_cast<std::uint32_t>(count));
}

std::int32_t* ints(Array& a) { return reinterpret_cast<std::int32_t*>(a.bytes.data()); }

// Ascending windows with weights that sum to 1, a few of them negative.
void draw_axis(std::int64_t inputs, std::int64_t outputs, bool whole, Array& first,
               Array& weights) {
  const std::int64_t taps =
      whole ? 1 + below(std::min<std::int64_t>(inputs, 11)) : std::min<std::int64_t>(inputs, 2);
  first = Array(DType::kI32, {outputs}, {1});
  weights = Array(whole ? DType::kI32 : DType::kF32, {outputs, taps}, {taps, 1});
  for (std::int64_t i = 0; i < outputs; ++i) {
    // Windows may hang over the edge if their levels stay whole: such weights do not count.
    const std::int64_t last = whole ? inputs - 1 : inputs - taps;
    const std::int64_t at = i * (inputs - 1) / std::max<std::int64_t>(outputs - 1, 1);
    ints(first)[i] = static_cast<std::int32_t>(std::min(at, last));
    if (!whole) {
      const float share = static_cast<float>(below(1000)) / 1000.0f;
      for (std::int64_t k = 0; k < taps; ++k) {
        weights.set(i * taps + k, taps == 1 ? 1.0f : k == 0 ? 1.0f - share : share);
      }
      continue;
    }
    std::int32_t rest = 1 << vlakern::kImagePrepBits;
    for (std::int64_t k = taps - 1; k >= 0; --k) {
      const auto share = static_cast<std::int32_t>(below(1 << 18)) - (1 << 16);
      ints(weights)[i * taps + k] = k == 0 ? rest : share;
      rest -= share;
    }
  }
}

Problem draw_problem() {
  Problem p;
  p.whole = below(4) != 0;
  const std::int64_t views = below(4), h = 1 + below(70), w = 1 + below(90);
  p.s.patch = below(2) * (1 + below(17));
  const std::int64_t unit = std::max<std::int64_t>(p.s.patch, 1);
  p.s.height = unit * (1 + below(1 + 60 / unit));
  p.s.width = unit * (1 + below(1 + 60 / unit));
  const std::int64_t m = 1 + below(p.s.height), n = 1 + below(p.s.width);
  p.s.top = below(p.s.height - m + 1);
  p.s.left = below(p.s.width - n + 1);
  p.s.norm = {255.0f, {0.4f, 0.5f, 0.6f}, {0.2f, 0.3f, 1.0f}};
  for (std::uint8_t& level : p.s.pad) level = static_cast<std::uint8_t>(below(256));
  const std::int64_t layout = below(4), pixel = layout == 1 ? 4 : 3, gap = layout == 2 ? 7 : 0;
  std::vector<std::int64_t> stride{h * (w * pixel + gap), w * pixel + gap, pixel, 1};
  if (layout == 3) stride = {3 * h * w, w, 1, h * w};
  p.images = Array(DType::kU8, {views, h, w, 3}, stride);
  for (unsigned char& byte : p.images.bytes) byte = static_cast<unsigned char>(below(256));
  draw_axis(h, m, p.whole, p.y_first, p.y_weights);
  draw_axis(w, n, p.whole, p.x_first, p.x_weights);
  const DType dtypes[] = {DType::kF32, DType::kBF16, DType::kF16};
  const DType dtype = dtypes[below(3)];
  const std::int64_t dense = 3 * p.s.height * p.s.width;
  if (p.s.patch == 0) {
    p.out = Array(dtype, {views, 3, p.s.height, p.s.width},
                  {dense + below(9), p.s.height * p.s.width, p.s.width, 1});
  } else {
    const std::int64_t row = 3 * p.s.patch * p.s.patch;
    p.out = Array(dtype, {views, dense / row, row}, {dense + below(9), row, 1});
  }
  return p;
}

std::vector<unsigned char> run(Problem& p, const std::string& isa, int threads) {
  std::fill(p.out.bytes.begin(), p.out.bytes.end(), static_cast<unsigned char>(0xff));
  vlakern::ImagePrepParams params =
      vlakern::image_prep_params({p.images.view, p.y_first.view, p.y_weights.view, p.x_first.view,
                                  p.x_weights.view, p.out.view},
                                 p.s, isa, threads);
  params.threads = threads;  // however small the problem
  std::vector<std::uint8_t> workspace(
      static_cast<std::size_t>(vlakern::image_prep_workspace(params)));
  params.workspace = workspace.data();
  vlakern::image_prep_cpu(params);
  return p.out.bytes;
}

int level(const Problem& p, std::int64_t v, std::int64_t y, std::int64_t x, std::int64_t c) {
  const auto& s = p.images.view.stride;
  return p.images.bytes[static_cast<std::size_t>(v * s[0] + y * s[1] + x * s[2] + c * s[3])];
}

// The level of channel c at (y, x) of the resized image, by itself.
double resized(Problem& p, std::int64_t v, std::int64_t y, std::int64_t x, std::int64_t c) {
  const std::int64_t rows = p.y_weights.view.shape[1], columns = p.x_weights.view.shape[1];
  const auto& shape = p.images.view.shape;
  const auto clip = [](std::int64_t total) {
    return std::clamp<std::int64_t>(total >> vlakern::kImagePrepBits, 0, 255);
  };
  const std::int64_t half = 1 << (vlakern::kImagePrepBits - 1);
  std::int64_t total = half;
  double real = 0;
  for (std::int64_t k = 0; k < rows; ++k) {
    const std::int64_t r = ints(p.y_first)[y] + k;
    if (r >= shape[1]) break;
    std::int64_t row = half;
    double real_row = 0;
    for (std::int64_t l = 0; l < columns; ++l) {
      const std::int64_t column = ints(p.x_first)[x] + l;
      if (column >= shape[2]) break;
      const int value = level(p, v, r, column, c);
      row += std::int64_t{ints(p.x_weights)[x * columns + l]} * value;
      real_row += double{p.x_weights.get(x * columns + l)} * value;
    }
    total += std::int64_t{ints(p.y_weights)[y * rows + k]} * clip(row);
    real += double{p.y_weights.get(y * rows + k)} * real_row;
  }
  return p.whole ? static_cast<double>(clip(total)) : real;
}

bool right(Problem& p) {
  const double ulp = p.out.view.dtype == DType::kF32    ? 1e-5
                     : p.out.view.dtype == DType::kBF16 ? 2e-2
                                                        : 2e-3;
  const vlakern::ImagePrepSettings& s = p.s;
  for (std::int64_t i = 0; i < p.out.view.shape[0] * s.height * s.width * 3; ++i) {
    const std::int64_t x = i % s.width, y = i / s.width % s.height;
    const std::int64_t c = i / (s.width * s.height) % 3, v = i / (s.width * s.height * 3);
    const std::int64_t m = p.y_first.view.shape[0], n = p.x_first.view.shape[0];
    const bool inside = y >= s.top && y < s.top + m && x >= s.left && x < s.left + n;
    const double value = inside ? resized(p, v, y - s.top, x - s.left, c) : s.pad[c];
    const double expected = (value / 255 - s.norm.mean[c]) / s.norm.std[c];
    std::int64_t at = v * p.out.view.stride[0];
    if (s.patch == 0) {
      at += (c * s.height + y) * s.width + x;
    } else {
      const std::int64_t patch = y / s.patch * (s.width / s.patch) + x / s.patch;
      at += ((patch * 3 + c) * s.patch + y % s.patch) * s.patch + x % s.patch;
    }
    // Written so that NaN, the poison, is wrong.
    if (!(std::fabs(p.out.get(at) - expected) <= ulp * (1 + std::fabs(expected)))) {
      std::printf("v=%d c=%d y=%d x=%d: %g, expected %g\n", int(v), int(c), int(y), int(x),
                  double{p.out.get(at)}, expected);
      return false;
    }
  }
  return true;
}

// Whether a table that leads outside the image, or could overflow, is refused.
bool refused(Problem& p) {
  const std::int64_t outputs = p.x_first.view.shape[0], taps = p.x_weights.view.shape[1];
  const auto far = static_cast<std::int32_t>(p.images.view.shape[2] + below(1000));
  std::int32_t& first = ints(p.x_first)[below(outputs)];
  switch (below(p.whole ? 4 : 3)) {
    case 0:
      first = far;
      break;
    case 1:
      first = -1 - static_cast<std::int32_t>(below(1000));
      break;
    case 2:
      p.s.left = p.s.width - outputs + 1 + below(5);
      break;
    default:
      ints(p.x_weights)[below(outputs) * taps] = 0x7fffffff - static_cast<std::int32_t>(below(99));
  }
  try {
    run(p, "", 1);
  } catch (const vlakern::InputError&) {
    return true;
  }
  return false;
}

}  // namespace

int main() {
  constexpr int kProblems = 300;
  for (int i = 0; i < kProblems; ++i) {
    Problem p = draw_problem();
    const std::vector<unsigned char> scalar = run(p, "scalar", 1);
    if (!right(p)) {
      std::printf("problem %d: scalar is wrong\n", i);
      return 1;
    }
    for (const std::string& isa : vlakern::isas()) {
      for (int threads : {1, 3}) {
        if (run(p, isa, threads) != scalar) {
          std::printf("problem %d: %s on %d threads differs from scalar\n", i, isa.c_str(),
                      threads);
          return 1;
        }
      }
    }
    if (!refused(p)) {
      std::printf("problem %d: a broken table is taken\n", i);
      return 1;
    }
  }
  std::printf("%d problems, %d broken ones refused\n", kProblems, kProblems);
  return 0;
}
