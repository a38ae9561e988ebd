#include "policy/images.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "image_prep/image_prep.h"

namespace vlakern {
namespace {

constexpr int kBits = 22;  // of a fixed-point weight's fraction

// Where the resized image lies in the output, and what of it is cut out [px].
struct Box {
  std::int64_t begin[2], size[2], cut[2], resized[2];
};

Box cover(const std::int64_t (&image)[2], std::int64_t side) {
  Box box{{0, 0}, {side, side}, {0, 0}, {side, side}};
  const int longer = image[0] <= image[1] ? 1 : 0;
  const double ratio =
      static_cast<double>(side * image[longer]) / static_cast<double>(image[1 - longer]);
  box.resized[longer] = std::max(side, static_cast<std::int64_t>(ratio));
  for (int i = 0; i < 2; ++i) {
    box.cut[i] =
        static_cast<std::int64_t>(std::nearbyint(static_cast<double>(box.resized[i] - side) / 2.0));
  }
  return box;
}

Box place(const std::int64_t (&image)[2], std::int64_t side, Fit fit) {
  if (fit == Fit::kCover) return cover(image, side);
  Box box{{0, 0}, {side, side}, {0, 0}, {side, side}};
  if (fit == Fit::kStretch) return box;
  const double ratio =
      static_cast<double>(std::max(image[0], image[1])) / static_cast<double>(side);
  for (int i = 0; i < 2; ++i) {
    const double exact = static_cast<double>(image[i]) / ratio;
    const double whole = fit == Fit::kLetterbox ? std::nearbyint(exact) : std::trunc(exact);
    const std::int64_t size =
        std::min(side, std::max<std::int64_t>(1, static_cast<std::int64_t>(whole)));
    const std::int64_t gap = side - size;
    box.begin[i] = fit == Fit::kLerobot ? gap : gap / 2;
    box.size[i] = box.resized[i] = size;
  }
  return box;
}

struct Taps {
  std::vector<std::int32_t> first, fixed;
  std::vector<float> real;
  std::int64_t count = 1;
};

Taps same(std::int64_t outputs, bool whole) {
  Taps taps;
  for (std::int64_t i = 0; i < outputs; ++i) taps.first.push_back(static_cast<std::int32_t>(i));
  if (whole) {
    taps.fixed.assign(static_cast<std::size_t>(outputs), 1 << kBits);
  } else {
    taps.real.assign(static_cast<std::size_t>(outputs), 1.0f);
  }
  return taps;
}

Taps two_points(std::int64_t inputs, std::int64_t outputs) {
  Taps taps;
  taps.count = inputs == 1 ? 1 : 2;
  const double scale = static_cast<double>(inputs) / static_cast<double>(outputs);
  for (std::int64_t i = 0; i < outputs; ++i) {
    const double at = std::max((static_cast<double>(i) + 0.5) * scale - 0.5, 0.0);
    const double first =
        std::min(std::floor(at), static_cast<double>(std::max<std::int64_t>(inputs - 2, 0)));
    const double right = std::min(at - first, 1.0);
    taps.first.push_back(static_cast<std::int32_t>(first));
    if (inputs == 1) {
      taps.real.push_back(1.0f);
    } else {
      taps.real.push_back(static_cast<float>(1.0 - right));
      taps.real.push_back(static_cast<float>(right));
    }
  }
  return taps;
}

double shape(double x, bool cubic) {
  x = std::fabs(x);
  if (!cubic) return std::max(1.0 - x, 0.0);
  const double a = -0.5;
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  return x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * a : 0.0;
}

Taps antialias(std::int64_t inputs, std::int64_t outputs, bool cubic) {
  const double scale = static_cast<double>(inputs) / static_cast<double>(outputs);
  const double wide = std::max(scale, 1.0), support = (cubic ? 2.0 : 1.0) * wide;
  std::vector<std::vector<double>> rows;
  Taps taps;
  for (std::int64_t i = 0; i < outputs; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * scale;
    const double first = std::max(std::trunc(centre - support + 0.5), 0.0);
    const double end = std::min(std::trunc(centre + support + 0.5), static_cast<double>(inputs));
    std::vector<double> row;
    double total = 0.0;
    for (double j = 0.0; j < end - first; j += 1.0) {
      row.push_back(shape((j + first - centre + 0.5) * (1.0 / wide), cubic));
      total += row.back();
    }
    for (double& weight : row) weight /= total;
    taps.first.push_back(static_cast<std::int32_t>(first));
    taps.count = std::max(taps.count, static_cast<std::int64_t>(row.size()));
    rows.push_back(row);
  }
  for (std::vector<double>& row : rows) {
    row.resize(static_cast<std::size_t>(taps.count), 0.0);
    for (const double weight : row) {
      const double fixed = weight * (1 << kBits) + (weight < 0.0 ? -0.5 : 0.5);
      taps.fixed.push_back(static_cast<std::int32_t>(std::trunc(fixed)));
    }
  }
  return taps;
}

Taps taps_of(Filter filter, std::int64_t inputs, std::int64_t outputs) {
  const bool whole = filter != Filter::kBilinear;
  if (inputs == outputs) return same(outputs, whole);
  return whole ? antialias(inputs, outputs, filter == Filter::kBicubicAntialias)
               : two_points(inputs, outputs);
}

Tensor vector_of(const std::int32_t* at, std::int64_t count) {
  return {reinterpret_cast<std::uintptr_t>(at), DType::kI32, 1, {count}, {1}};
}

Tensor weights_of(const Taps& taps, std::int64_t from, std::int64_t count) {
  const bool whole = !taps.fixed.empty();
  const std::int64_t skip = from * taps.count;
  const auto at = whole ? reinterpret_cast<std::uintptr_t>(taps.fixed.data() + skip)
                        : reinterpret_cast<std::uintptr_t>(taps.real.data() + skip);
  return {at, whole ? DType::kI32 : DType::kF32, 2, {count, taps.count}, {taps.count, 1}};
}

}  // namespace

void prepare_image(const std::uint8_t* pixels, std::int64_t height, std::int64_t width,
                   std::int64_t stride, const Processing& rule, std::int64_t side,
                   std::int64_t patch, const Tensor& out, int threads) {
  const std::int64_t image[2] = {height, width};
  const Box box = place(image, side, rule.fit);
  const bool right_size = height == box.resized[0] && width == box.resized[1];
  const Filter filter = right_size ? Filter::kBilinearAntialias : rule.filter;
  const Taps y = taps_of(filter, height, box.resized[0]);
  const Taps x = taps_of(filter, width, box.resized[1]);
  ImagePrepTensors t{};
  t.images = {reinterpret_cast<std::uintptr_t>(pixels),
              DType::kU8,
              4,
              {1, height, width, 3},
              {height * stride, stride, 3, 1}};
  t.y_first = vector_of(y.first.data() + box.cut[0], box.size[0]);
  t.y_weights = weights_of(y, box.cut[0], box.size[0]);
  t.x_first = vector_of(x.first.data() + box.cut[1], box.size[1]);
  t.x_weights = weights_of(x, box.cut[1], box.size[1]);
  t.out = out;
  ImagePrepSettings s{box.begin[0], box.begin[1], side, side, patch, {}, {}};
  s.norm = {127.5f, {1.0f, 1.0f, 1.0f}, {1.0f, 1.0f, 1.0f}};
  if (!rule.mean.empty()) {
    s.norm = {255.0f,
              {rule.mean[0], rule.mean[1], rule.mean[2]},
              {rule.std[0], rule.std[1], rule.std[2]}};
  }
  std::fill(std::begin(s.pad), std::end(s.pad), rule.pad);
  ImagePrepParams p = image_prep_params(t, s, "", threads);
  const Block workspace(static_cast<std::size_t>(image_prep_workspace(p)));
  p.workspace = workspace.as<std::uint8_t>();
  image_prep_cpu(p);
}

}  // namespace vlakern
