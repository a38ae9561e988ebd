#include <cmath>
#include <limits>

#include "action_decode/action_decode.h"
#include "common/number.h"

namespace vlakern {
namespace {

using Params = ActionDecodeParams;

constexpr double kUnitTolerance = 1e-3;

template <class X>
void copy_values(const Params& p, const X* x, float* out) {
  for (const Params::Copy& copy : p.copies) {
    double value = to_float(x[copy.slot * p.x_stride[2]]);
    if (copy.binary && !std::isnan(value)) value = value > 0 ? 1 : -1;
    out[copy.column * p.out_stride[2]] =
        static_cast<float>(value * copy.of_x.gain + copy.of_x.shift);
  }
}

template <class X>
void read_slots(const Params& p, const X* x, std::int64_t first, int count, double* values) {
  for (int i = 0; i < count; ++i) {
    const auto& [scale, offset] = p.slots[static_cast<std::size_t>(first + i)];
    values[i] = to_float(x[(first + i) * p.x_stride[2]]) * scale + offset;
  }
}

void write_columns(const Params& p, float* out, std::int64_t first, int count,
                   const double* values) {
  for (int i = 0; i < count; ++i) {
    out[(first + i) * p.out_stride[2]] = static_cast<float>(values[i]);
  }
}

// A base that is no rotation has no meaning: NaN goes wherever it would be used.
Quaternion base_rotation(const float* base, std::int64_t stride) {
  const Quaternion q{base[3 * stride], base[4 * stride], base[5 * stride], base[6 * stride]};
  if (std::fabs(norm(q) - 1) <= kUnitTolerance) return unit(q);
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  return {kNan, kNan, kNan, kNan};
}

template <class X>
void decode_pose(const Params& p, const Params::Pose& pose, const X* x, const float* base,
                 float* out) {
  const std::int64_t step = p.base_stride[2];
  Vec3 from{base[0], base[step], base[2 * step]};
  Quaternion turned{1, 0, 0, 0};
  if (pose.rotates) turned = base_rotation(base, step);
  for (std::int64_t h = 0; h < p.positions; ++h, x += p.x_stride[1], out += p.out_stride[1]) {
    double values[kMaxRotationWidth];
    read_slots(p, x, pose.slot, 3, values);
    const Vec3 move{values[0], values[1], values[2]};
    const Vec3 position = from + (p.in_hand ? rotate(turned, move) : move);
    const double triple[] = {position.x, position.y, position.z};
    write_columns(p, out, pose.column, 3, triple);
    if (p.delta) from = position;
    if (!pose.rotates) continue;
    read_slots(p, x, pose.rotation_slot, kRotationWidth[static_cast<int>(pose.kind)], values);
    const Quaternion turn = read_rotation(values, pose.kind);
    const Quaternion rotation = p.in_hand ? turned * turn : turn * turned;
    if (p.delta) turned = rotation;
    write_rotation(rotation, pose.kind_out, values);
    write_columns(p, out, pose.rotation_column, kRotationWidth[static_cast<int>(pose.kind_out)],
                  values);
  }
}

template <class X>
void decode(const Params& p) {
  for (std::int64_t b = 0; b < p.rows; ++b) {
    const X* x = static_cast<const X*>(p.x) + b * p.x_stride[0];
    float* out = p.out + b * p.out_stride[0];
    for (std::int64_t h = 0; h < p.positions; ++h) {
      copy_values(p, x + h * p.x_stride[1], out + h * p.out_stride[1]);
    }
    for (std::size_t i = 0; i < p.poses.size(); ++i) {
      const auto pose = static_cast<std::int64_t>(i);
      const float* base = p.base + b * p.base_stride[0] + pose * p.base_stride[1];
      decode_pose(p, p.poses[i], x, base, out);
    }
  }
}

}  // namespace

void action_decode_cpu(const ActionDecodeParams& p) {
  if (p.columns == 0 || p.positions == 0) return;
  switch (p.x_dtype) {
    case DType::kBF16:
      return decode<bf16>(p);
    case DType::kF16:
      return decode<f16>(p);
    default:
      return decode<float>(p);
  }
}

}  // namespace vlakern
