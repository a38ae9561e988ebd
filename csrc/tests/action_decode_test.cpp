// Runs action_decode without Python, under sanitizers: random tables against the formulas written
// with matrices, then tables that lead out of memory, each of which must be refused.
#include "action_decode/action_decode.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <utility>
#include <vector>

#include "common/error.h"
#include "tests/array.h"

namespace {

using vlakern::DType;
using vlakern::Vec3;
using vlakern::tests::Array;
using Matrix = std::array<Vec3, 3>;  // columns

constexpr const char* kFrames[] = {"world_relative", "world_delta", "eef_relative", "eef_delta"};
constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

struct Problem {
  std::int64_t rows, positions, slots, width;
  Array x, scale, offset, base, copies, affine, poses;

  vlakern::ActionDecodeTensors tensors(const Array& out) const {
    return {x.view,      scale.view,  offset.view, base.view,
            copies.view, affine.view, poses.view,  out.view};
  }
  std::int32_t copy(std::int64_t i, int j) const { return integers(copies)[i * 3 + j]; }
  std::int32_t pose(std::int64_t i, int j) const { return integers(poses)[i * 6 + j]; }

  static std::int32_t* integers(Array& a) { return reinterpret_cast<std::int32_t*>(a.view.data); }
  static const std::int32_t* integers(const Array& a) {
    return reinterpret_cast<const std::int32_t*>(a.view.data);
  }
};

Array chunk(DType dtype, std::int64_t rows, std::int64_t positions, std::int64_t columns, int gap) {
  const std::int64_t position = columns * (1 + gap) + gap;
  return Array(dtype, {rows, positions, columns}, {positions * position, position, 1 + gap});
}

int width_of(std::int32_t kind) { return vlakern::kRotationWidth[kind]; }

// Columns go to copies first, then to the poses; slots are drawn, several readers may share one.
void fill_tables(Problem& p, bool bare, std::mt19937& random) {
  const auto below = [&](std::int64_t n) {
    return static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(n));
  };
  std::int32_t column = 0;
  for (std::int64_t i = 0; i < p.copies.view.shape[0]; ++i) {
    std::int32_t* row = Problem::integers(p.copies) + i * 3;
    row[0] = below(p.slots);
    row[1] = column++;
    row[2] = below(2);
  }
  for (std::int64_t i = 0; i < p.poses.view.shape[0]; ++i) {
    std::int32_t* row = Problem::integers(p.poses) + i * 6;
    row[2] = below(4);
    row[5] = below(4);
    row[0] = below(p.slots - 2);
    row[1] = bare ? -1 : below(p.slots - width_of(row[2]) + 1);
    row[3] = column;
    row[4] = bare ? -1 : column + 3;
    column += 3 + (bare ? 0 : width_of(row[5]));
  }
  p.width = column;
}

Problem make_problem(int number, std::mt19937& random) {
  const int gap = number % 2;
  const std::int64_t rows = number % 4, positions = number % 7, poses = number % 3;
  const std::int64_t slots = 9 + number % 23, copies = number % 11;
  Problem p{rows,
            positions,
            slots,
            0,
            chunk(kDTypes[number % 3], rows, positions, slots, gap),
            Array(DType::kF32, {slots}, {1 + gap}),
            Array(DType::kF32, {slots}, {1}),
            Array(DType::kF32, {rows, poses, 7}, {poses * 7, 7, 1}),
            Array(DType::kI32, {copies, 3}, {3, 1}),
            Array(DType::kF32, {copies, 2}, {2, 1}),
            Array(DType::kI32, {poses, 6}, {6, 1})};
  std::normal_distribution<float> normal;
  for (Array* a : {&p.x, &p.scale, &p.offset, &p.base, &p.affine}) {
    for (std::int64_t i = 0; i < a->elements(); ++i) a->set(i, normal(random));
  }
  for (std::int64_t i = 0; i < rows * poses; ++i) {
    float* q = reinterpret_cast<float*>(p.base.view.data) + i * 7 + 3;
    const float length = std::sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
    std::transform(q, q + 4, q, [length](float v) { return v / length; });
  }
  fill_tables(p, number % 5 == 0, random);
  return p;
}

Vec3 times(const Matrix& m, const Vec3& v) { return v.x * m[0] + v.y * m[1] + v.z * m[2]; }

Matrix times(const Matrix& a, const Matrix& b) {
  return {times(a, b[0]), times(a, b[1]), times(a, b[2])};
}

Matrix matrix(double w, double x, double y, double z) {
  return {Vec3{1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)},
          Vec3{2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)},
          Vec3{2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)}};
}

// Rodrigues: cos θ·I + sin θ·[axis]x + (1 - cos θ)·axis·axisᵀ
Matrix rodrigues(const Vec3& v) {
  const double angle = std::hypot(v.x, v.y, v.z);
  if (angle == 0) return matrix(1, 0, 0, 0);
  const Vec3 axis = (1 / angle) * v;
  const auto column = [&](const Vec3& e) {
    return std::cos(angle) * e + std::sin(angle) * cross(axis, e) +
           (1 - std::cos(angle)) * dot(axis, e) * axis;
  };
  return {column({1, 0, 0}), column({0, 1, 0}), column({0, 0, 1})};
}

Matrix read_matrix(const std::vector<double>& v, std::int32_t kind) {
  if (kind == 0) return rodrigues({v[0], v[1], v[2]});
  if (kind == 1) {
    const Vec3 first{v[0], v[1], v[2]}, near{v[3], v[4], v[5]};
    const Vec3 a = (1 / norm(first)) * first;
    const Vec3 third = cross(a, near);
    const Vec3 c = (1 / norm(third)) * third;
    return {a, cross(c, a), c};
  }
  const double length = std::sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + v[3] * v[3]);
  const int w = kind == 2 ? 3 : 0, x = kind == 2 ? 0 : 1;
  return matrix(v[w] / length, v[x] / length, v[x + 1] / length, v[x + 2] / length);
}

double distance(const Matrix& a, const Matrix& b) {
  double largest = 0;
  for (int i = 0; i < 3; ++i) largest = std::max(largest, norm(a[i] + -1.0 * b[i]));
  return largest;
}

// Written so that NaN, the poison, is far.
bool close(double found, double expected, double scale = 1) {
  return std::fabs(found - expected) <= 2e-5 * (scale + std::fabs(expected));
}

bool pose_right(const Problem& p, const Array& out, std::int64_t b, std::int64_t i, bool delta,
                bool in_hand) {
  const auto value = [&](std::int64_t h, std::int64_t slot) {
    const auto& s = p.x.view.stride;
    const double scale = p.scale.get(slot * p.scale.view.stride[0]);
    return p.x.get(b * s[0] + h * s[1] + slot * s[2]) * scale + p.offset.get(slot);
  };
  const auto read = [&](std::int64_t h, std::int64_t column) {
    const auto& s = out.view.stride;
    return double{out.get(b * s[0] + h * s[1] + column * s[2])};
  };
  const auto base = [&](int j) {
    return double{p.base.get((b * p.base.view.shape[1] + i) * 7 + j)};
  };
  Vec3 from{base(0), base(1), base(2)};
  Matrix turned = matrix(base(3), base(4), base(5), base(6));
  for (std::int64_t h = 0; h < p.positions; ++h) {
    const std::int64_t slot = p.pose(i, 0), column = p.pose(i, 3);
    const Vec3 move{value(h, slot), value(h, slot + 1), value(h, slot + 2)};
    const Vec3 at = from + (in_hand ? times(turned, move) : move);
    if (delta) from = at;
    const double reach = norm(at);
    if (!close(read(h, column), at.x, reach) || !close(read(h, column + 1), at.y, reach) ||
        !close(read(h, column + 2), at.z, reach)) {
      return false;
    }
    if (p.pose(i, 1) < 0) continue;
    std::vector<double> numbers, written;
    for (int j = 0; j < width_of(p.pose(i, 2)); ++j) numbers.push_back(value(h, p.pose(i, 1) + j));
    for (int j = 0; j < width_of(p.pose(i, 5)); ++j) written.push_back(read(h, p.pose(i, 4) + j));
    const Matrix turn = read_matrix(numbers, p.pose(i, 2));
    const Matrix expected = in_hand ? times(turned, turn) : times(turn, turned);
    if (delta) turned = expected;
    if (!(distance(read_matrix(written, p.pose(i, 5)), expected) <= 1e-4)) return false;
  }
  return true;
}

bool right(const Problem& p, const Array& out, int frame) {
  for (std::int64_t b = 0; b < p.rows; ++b) {
    for (std::int64_t h = 0; h < p.positions; ++h) {
      for (std::int64_t i = 0; i < p.copies.view.shape[0]; ++i) {
        const std::int64_t slot = p.copy(i, 0);
        const auto &s = p.x.view.stride, &o = out.view.stride;
        double x = p.x.get(b * s[0] + h * s[1] + slot * s[2]);
        if (p.copy(i, 2) == 1) x = x > 0 ? 1 : -1;
        const double scale = p.scale.get(slot * p.scale.view.stride[0]);
        const double value = x * scale + p.offset.get(slot);
        const double expected = value * p.affine.get(2 * i) + p.affine.get(2 * i + 1);
        if (!close(out.get(b * o[0] + h * o[1] + p.copy(i, 1) * o[2]), expected)) return false;
      }
    }
    for (std::int64_t i = 0; i < p.poses.view.shape[0]; ++i) {
      if (!pose_right(p, out, b, i, frame % 2 == 1, frame >= 2)) return false;
    }
  }
  return true;
}

// Every index of the tables, one step and many steps out of its range, is an InputError.
int refused(Problem& p, const Array& out) {
  int count = 0;
  const auto refuses = [&](std::int32_t& entry, std::int32_t value) {
    const std::int32_t before = entry;
    entry = value;
    bool caught = false;
    try {
      vlakern::action_decode_params(p.tensors(out), "world_delta");
    } catch (const vlakern::InputError&) {
      caught = true;
    }
    entry = before;
    count += caught;
    return caught;
  };
  std::vector<std::pair<std::int32_t*, std::vector<std::int32_t>>> wrong;
  const auto slots = static_cast<std::int32_t>(p.slots), width = static_cast<std::int32_t>(p.width);
  constexpr std::int32_t kLow = INT32_MIN, kHigh = INT32_MAX;
  for (std::int64_t i = 0; i < p.copies.view.shape[0]; ++i) {
    std::int32_t* row = Problem::integers(p.copies) + i * 3;
    wrong.push_back({row, {-1, slots, kLow, kHigh}});
    wrong.push_back({row + 1, {-1, width, row[1] + 1, kLow, kHigh}});
    wrong.push_back({row + 2, {-1, 2, kLow, kHigh}});
  }
  for (std::int64_t i = 0; i < p.poses.view.shape[0]; ++i) {
    std::int32_t* row = Problem::integers(p.poses) + i * 6;
    wrong.push_back({row, {-1, slots - 2, kLow, kHigh}});
    wrong.push_back({row + 3, {-1, width - 2, row[3] + 1, kLow, kHigh}});
    if (row[1] < 0) continue;
    wrong.push_back({row + 1, {-1, -2, slots - 2, kLow, kHigh}});
    wrong.push_back({row + 4, {-1, -2, width - 2, row[4] + 1, kLow, kHigh}});
    wrong.push_back({row + 2, {-1, 4, kLow, kHigh}});
    wrong.push_back({row + 5, {-1, 4, kLow, kHigh}});
  }
  for (auto& [entry, values] : wrong) {
    for (std::int32_t value : values) {
      if (!refuses(*entry, value)) return -1;
    }
  }
  return count;
}

}  // namespace

int main() {
  std::mt19937 random(1);
  int cases = 0, refusals = 0;
  for (int number = 0; number < 600; ++number) {
    const int frame = number / 150;
    Problem p = make_problem(number, random);
    if (frame >= 2 && number % 5 == 0) continue;  // a bare position, which eef frames refuse
    const Array out = chunk(DType::kF32, p.rows, p.positions, p.width, number % 2);
    vlakern::action_decode_cpu(vlakern::action_decode_params(p.tensors(out), kFrames[frame]));
    if (!right(p, out, frame)) {
      std::printf("problem %d, %s: wrong\n", number, kFrames[frame]);
      return 1;
    }
    const int found = refused(p, out);
    if (found < 0) {
      std::printf("problem %d: a wrong table was accepted\n", number);
      return 1;
    }
    refusals += found;
    ++cases;
  }
  std::printf("%d decoded, %d refused\n", cases, refusals);
  return 0;
}
