// Rotations as unit quaternions in double: from and to what policies and controllers speak.
#pragma once

#include <cmath>
#include <limits>

namespace vlakern {

// Codes shared with Python's tables.
enum class RotationKind : int { kAxisAngle, kSixD, kXyzw, kWxyz };
constexpr int kRotationKinds = 4;
constexpr int kRotationWidth[kRotationKinds] = {3, 6, 4, 4};
constexpr int kMaxRotationWidth = 6;

// A vector shorter than this has no direction that its own rounding did not make.
constexpr double kShortest = 1e-6;

struct Vec3 {
  double x, y, z;
};

struct Quaternion {
  double w, x, y, z;
};

inline Vec3 operator+(const Vec3& a, const Vec3& b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }

inline Vec3 operator*(double s, const Vec3& a) { return {s * a.x, s * a.y, s * a.z}; }

inline double dot(const Vec3& a, const Vec3& b) { return a.x * b.x + a.y * b.y + a.z * b.z; }

inline double norm(const Vec3& a) { return std::sqrt(dot(a, a)); }

inline double norm(const Quaternion& q) {
  return std::sqrt(q.w * q.w + q.x * q.x + q.y * q.y + q.z * q.z);
}

inline Vec3 cross(const Vec3& a, const Vec3& b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

// Rotates by b first, then by a.
inline Quaternion operator*(const Quaternion& a, const Quaternion& b) {
  return {
      a.w * b.w - a.x * b.x - a.y * b.y - a.z * b.z, a.w * b.x + a.x * b.w + a.y * b.z - a.z * b.y,
      a.w * b.y - a.x * b.z + a.y * b.w + a.z * b.x, a.w * b.z + a.x * b.y - a.y * b.x + a.z * b.w};
}

inline Vec3 rotate(const Quaternion& q, const Vec3& v) {
  const Vec3 u{q.x, q.y, q.z};
  const Vec3 t = 2 * cross(u, v);
  return v + q.w * t + cross(u, t);
}

// Scale that makes a length 1; NaN for one that is too short or not finite.
inline double unit_scale(double length) {
  const bool usable = length > kShortest && length <= std::numeric_limits<double>::max();
  return usable ? 1 / length : std::numeric_limits<double>::quiet_NaN();
}

inline Quaternion unit(const Quaternion& q) {
  const double s = unit_scale(norm(q));
  return {s * q.w, s * q.x, s * q.y, s * q.z};
}

inline Vec3 unit(const Vec3& v) { return unit_scale(norm(v)) * v; }

// sin(angle / 2) / angle tends to 1/2, and at an angle of 0 the vector is 0 whatever the factor.
inline Quaternion from_axis_angle(const Vec3& v) {
  const double angle = norm(v);
  const double s = angle == 0 ? 0.5 : std::sin(angle / 2) / angle;
  return {std::cos(angle / 2), s * v.x, s * v.y, s * v.z};
}

// The representative with w >= 0.
inline Quaternion upper(const Quaternion& q) {
  return q.w < 0 ? Quaternion{-q.w, -q.x, -q.y, -q.z} : q;
}

// atan2 keeps all digits at angle 0, where acos(w) has none, and at pi, where asin has none.
inline Vec3 to_axis_angle(const Quaternion& any) {
  const Quaternion q = upper(any);
  const Vec3 u{q.x, q.y, q.z};
  const double sine = norm(u);
  return (sine == 0 ? 2.0 : 2 * std::atan2(sine, q.w) / sine) * u;
}

// From orthonormal right-handed columns; divides by the largest component (Shepperd 1978).
inline Quaternion from_columns(const Vec3& a, const Vec3& b, const Vec3& c) {
  const double trace = a.x + b.y + c.z;
  if (trace >= a.x && trace >= b.y && trace >= c.z) {
    return unit(Quaternion{1 + trace, b.z - c.y, c.x - a.z, a.y - b.x});
  }
  if (a.x >= b.y && a.x >= c.z) {
    return unit(Quaternion{b.z - c.y, 1 + a.x - b.y - c.z, a.y + b.x, c.x + a.z});
  }
  if (b.y >= c.z) {
    return unit(Quaternion{c.x - a.z, a.y + b.x, 1 + b.y - c.z - a.x, b.z + c.y});
  }
  return unit(Quaternion{a.y - b.x, c.x + a.z, b.z + c.y, 1 + c.z - a.x - b.y});
}

// Gram-Schmidt on the first two columns (Zhou et al. 2019); NaN if they span no plane.
inline Quaternion from_six_d(const Vec3& first, const Vec3& second) {
  const Vec3 a = unit(first);
  const Vec3 near = unit(second);
  const Vec3 b = unit(near + -dot(a, near) * a);
  return from_columns(a, b, cross(a, b));
}

// values: kRotationWidth[kind] numbers of a model, projected onto the rotations.
inline Quaternion read_rotation(const double* values, RotationKind kind) {
  const Vec3 first{values[0], values[1], values[2]};
  switch (kind) {
    case RotationKind::kAxisAngle:
      return from_axis_angle(first);
    case RotationKind::kSixD:
      return from_six_d(first, {values[3], values[4], values[5]});
    case RotationKind::kXyzw:
      return unit(Quaternion{values[3], values[0], values[1], values[2]});
    default:
      return unit(Quaternion{values[0], values[1], values[2], values[3]});
  }
}

// Angle in [0, pi], w >= 0.
inline void write_rotation(const Quaternion& q, RotationKind kind, double* values) {
  const auto put = [values](int i, const Vec3& v) {
    values[i] = v.x;
    values[i + 1] = v.y;
    values[i + 2] = v.z;
  };
  const Quaternion u = upper(q);
  switch (kind) {
    case RotationKind::kAxisAngle:
      put(0, to_axis_angle(q));
      break;
    case RotationKind::kSixD:
      put(0, rotate(q, {1, 0, 0}));
      put(3, rotate(q, {0, 1, 0}));
      break;
    case RotationKind::kXyzw:
      put(0, {u.x, u.y, u.z});
      values[3] = u.w;
      break;
    default:
      values[0] = u.w;
      put(1, {u.x, u.y, u.z});
  }
}

}  // namespace vlakern
