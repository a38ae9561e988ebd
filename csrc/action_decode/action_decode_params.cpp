#include <algorithm>
#include <utility>

#include "action_decode/action_decode.h"

namespace vlakern {
namespace {

void check_shapes(const ActionDecodeTensors& t, const Dims& named) {
  Dims dims = named;
  dims.check("x", t.x, {"B", "H", "A"}, {DType::kF32, DType::kBF16, DType::kF16});
  dims.check("scale", t.scale, {"A"}, {DType::kF32});
  dims.check("offset", t.offset, {"A"}, {DType::kF32});
  dims.check("poses", t.poses, {"P", "6"}, {DType::kI32});
  dims.check("base", t.base, {"B", "P", "7"}, {DType::kF32});
  dims.check("copies", t.copies, {"C", "3"}, {DType::kI32});
  dims.check("affine", t.affine, {"C", "2"}, {DType::kF32});
  dims.check_output("out", t.out, {"B", "H", "N"}, {DType::kF32});
}

template <class T>
T element(const Tensor& t, std::int64_t i, std::int64_t j = 0) {
  const std::int64_t column = t.rank > 1 ? j * t.stride[1] : 0;
  return reinterpret_cast<const T*>(t.data)[i * t.stride[0] + column];
}

// First and last byte + 1 that a tensor touches; empty tensors touch none.
std::pair<std::uintptr_t, std::uintptr_t> extent(const Tensor& t) {
  std::int64_t low = 0, high = 1;
  for (int i = 0; i < t.rank; ++i) {
    if (t.shape[i] == 0) return {0, 0};
    const std::int64_t reach = (t.shape[i] - 1) * t.stride[i];
    (reach < 0 ? low : high) += reach;
  }
  const std::int64_t size = dtype_size(t.dtype);
  return {t.data + static_cast<std::uintptr_t>(low * size),
          t.data + static_cast<std::uintptr_t>(high * size)};
}

void check_apart(const char* name, const Tensor& input, const Tensor& out, const Dims& dims) {
  const auto a = extent(input), b = extent(out);
  if (a.first < b.second && b.first < a.second) {
    dims.fail(std::string("out shares memory with ") + name + "; give it memory of its own");
  }
}

// Which columns are written so far; each may be written once and must be.
class Columns {
 public:
  Columns(std::int64_t count, const Dims& dims)
      : written_(static_cast<std::size_t>(count)), dims_(dims) {}

  void write(std::int64_t first, int width, const std::string& by) {
    const auto count = static_cast<std::int64_t>(written_.size());
    for (std::int64_t i = first; i < first + width; ++i) {
      if (i < 0 || i >= count) {
        dims_.fail(by + " writes column " + std::to_string(i) + " of " + std::to_string(count));
      }
      if (written_[static_cast<std::size_t>(i)]) {
        dims_.fail(by + " writes column " + std::to_string(i) + ", which is written already");
      }
      written_[static_cast<std::size_t>(i)] = true;
    }
  }

  void check_all() const {
    const auto missing = std::find(written_.begin(), written_.end(), false);
    if (missing == written_.end()) return;
    dims_.fail("no copy or pose writes column " + std::to_string(missing - written_.begin()));
  }

 private:
  std::vector<bool> written_;
  const Dims& dims_;
};

void check_slots(std::int64_t first, int width, std::int64_t slots, const std::string& by,
                 const Dims& dims) {
  if (first < 0 || first + width > slots) {
    dims.fail(by + " reads slots " + std::to_string(first) + " to " +
              std::to_string(first + width - 1) + " of " + std::to_string(slots));
  }
}

RotationKind kind_of(std::int32_t code, const std::string& by, const Dims& dims) {
  if (code < 0 || code >= kRotationKinds) {
    dims.fail(by + " has rotation kind " + std::to_string(code) + ", expected 0 to 3");
  }
  return static_cast<RotationKind>(code);
}

void unpack_frame(const std::string& frame, ActionDecodeParams& p, const Dims& dims) {
  p.delta = frame == "world_delta" || frame == "eef_delta";
  p.in_hand = frame == "eef_relative" || frame == "eef_delta";
  if (!p.delta && !p.in_hand && frame != "world_relative") {
    dims.fail("frame must be world_relative, world_delta, eef_relative or eef_delta, got " + frame);
  }
}

ActionDecodeParams::Copy unpack_copy(const ActionDecodeTensors& t, const ActionDecodeParams& p,
                                     std::int64_t i, const Dims& dims) {
  const std::string by = "copy " + std::to_string(i);
  const auto slot = element<std::int32_t>(t.copies, i, 0);
  const auto column = element<std::int32_t>(t.copies, i, 1);
  const auto binary = element<std::int32_t>(t.copies, i, 2);
  check_slots(slot, 1, static_cast<std::int64_t>(p.slots.size()), by, dims);
  if (binary != 0 && binary != 1) {
    dims.fail(by + " has binary " + std::to_string(binary) + ", expected 0 or 1");
  }
  const auto& [scale, offset] = p.slots[static_cast<std::size_t>(slot)];
  const double gain = element<float>(t.affine, i, 0);
  const double shift = element<float>(t.affine, i, 1);
  return {slot, column, {scale * gain, offset * gain + shift}, binary == 1};
}

ActionDecodeParams::Pose unpack_pose(const Tensor& poses, const ActionDecodeParams& p,
                                     std::int64_t i, const Dims& dims) {
  const std::string by = "pose " + std::to_string(i);
  const auto at = [&](int j) { return element<std::int32_t>(poses, i, j); };
  const auto slots = static_cast<std::int64_t>(p.slots.size());
  ActionDecodeParams::Pose pose{};
  pose.slot = at(0);
  pose.column = at(3);
  check_slots(pose.slot, 3, slots, by, dims);
  pose.rotates = at(1) != -1;
  if (pose.rotates != (at(4) != -1)) {
    dims.fail(by + " must have a rotation in both its slots and its columns, or in neither");
  }
  if (!pose.rotates) {
    if (p.in_hand) dims.fail(by + " has no rotation, which the eef frames need");
    return pose;
  }
  pose.rotation_slot = at(1);
  pose.rotation_column = at(4);
  pose.kind = kind_of(at(2), by, dims);
  pose.kind_out = kind_of(at(5), by, dims);
  check_slots(pose.rotation_slot, kRotationWidth[at(2)], slots, by, dims);
  return pose;
}

void check_columns(const ActionDecodeParams& p, const Dims& dims) {
  Columns columns(p.columns, dims);
  for (std::size_t i = 0; i < p.copies.size(); ++i) {
    columns.write(p.copies[i].column, 1, "copy " + std::to_string(i));
  }
  for (std::size_t i = 0; i < p.poses.size(); ++i) {
    const auto& pose = p.poses[i];
    const std::string by = "pose " + std::to_string(i);
    columns.write(pose.column, 3, by);
    const int width = kRotationWidth[static_cast<int>(pose.kind_out)];
    if (pose.rotates) columns.write(pose.rotation_column, width, by);
  }
  columns.check_all();
}

}  // namespace

ActionDecodeParams action_decode_params(const ActionDecodeTensors& t, const std::string& frame) {
  const Dims dims("action_decode");
  check_shapes(t, dims);
  check_apart("x", t.x, t.out, dims);
  check_apart("base", t.base, t.out, dims);
  ActionDecodeParams p{};
  p.x = reinterpret_cast<const void*>(t.x.data);
  p.base = reinterpret_cast<const float*>(t.base.data);
  p.out = reinterpret_cast<float*>(t.out.data);
  std::copy_n(t.x.stride, 3, p.x_stride);
  std::copy_n(t.base.stride, 3, p.base_stride);
  std::copy_n(t.out.stride, 3, p.out_stride);
  p.rows = t.x.shape[0];
  p.positions = t.x.shape[1];
  p.columns = t.out.shape[2];
  p.x_dtype = t.x.dtype;
  unpack_frame(frame, p, dims);
  for (std::int64_t a = 0; a < t.x.shape[2]; ++a) {
    p.slots.push_back({element<float>(t.scale, a), element<float>(t.offset, a)});
  }
  for (std::int64_t i = 0; i < t.copies.shape[0]; ++i) {
    p.copies.push_back(unpack_copy(t, p, i, dims));
  }
  for (std::int64_t i = 0; i < t.poses.shape[0]; ++i) {
    p.poses.push_back(unpack_pose(t.poses, p, i, dims));
  }
  check_columns(p, dims);
  return p;
}

}  // namespace vlakern
