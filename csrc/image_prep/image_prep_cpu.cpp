#include <algorithm>
#include <cstring>

#include "common/thread_pool.h"
#include "image_prep/image_prep.h"

namespace vlakern {
namespace {

std::int64_t round_up(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

// What a part of the work needs for itself [bytes], and where it lies.
struct Layout {
  std::int64_t ring_row;    // a row resized along x, RGBX
  std::int64_t ring_rows;   // those that one output reads, and those resized together with them
  std::int64_t packed_row;  // a source row as RGB, where the image's own may not be read in place
  std::int64_t levels;      // an output row, RGBX
  std::int64_t pointers;    // to the rows that one output reads
  std::int64_t blended;     // a row between source rows, fp32 RGB
  std::int64_t plane;       // values of a channel of an output row, fp32 [elements]
  std::int64_t total;

  explicit Layout(const ImagePrepParams& p) {
    ring_row = round_up(4 * p.x.outputs + kImagePrepSlack);
    ring_rows = p.whole ? p.y.taps + kImagePrepTogether : 0;
    packed_row = round_up(3 * p.x.inputs + 12 * p.groups + kImagePrepReach);
    levels = round_up(4 * p.s.width + kImagePrepSlack);
    pointers = round_up((p.y.taps + 3) * static_cast<std::int64_t>(sizeof(void*)));
    blended = p.whole ? 0 : round_up(4 * (3 * p.x.inputs + 16));
    plane = p.whole ? 0 : round_up(4 * (p.s.width + 16)) / 4;
    total = ring_row * (ring_rows + 1) + packed_row * kImagePrepTogether + levels + pointers +
            blended + 12 * plane;
  }
};

// One part's walk down the rows of a view.
class Walk {
 public:
  Walk(const ImagePrepParams& p, const Layout& layout, std::uint8_t* memory)
      : p_(p), layout_(layout) {
    const auto take = [&memory](std::int64_t bytes) {
      std::uint8_t* start = memory;
      memory += bytes;
      return start;
    };
    ring_ = take(layout.ring_row * layout.ring_rows);
    blent_ = take(layout.ring_row);
    packed_ = take(layout.packed_row * kImagePrepTogether);
    levels_ = take(layout.levels);
    pointers_ = reinterpret_cast<const std::uint8_t**>(take(layout.pointers));
    blended_ = reinterpret_cast<float*>(take(layout.blended));
    values_ = reinterpret_cast<float*>(take(12 * layout.plane));
    // A window may read past its row, as long as that is still the image's next row.
    in_place_ = p.stride[3] == 1 && p.stride[2] == 3 && p.stride[1] >= 3 * p.x.inputs &&
                3 * p.x.inputs >= std::max(12 * p.groups + 4, kImagePrepReach);
  }

  // Output rows [begin, end) of view v.
  void rows(std::int64_t v, std::int64_t begin, std::int64_t end) {
    view_ = p_.images + v * p_.stride[0];
    next_ = 0;
    fill();
    const ImagePrepSettings& s = p_.s;
    const std::int64_t first = std::clamp(s.top, begin, end);
    const std::int64_t last = std::clamp(s.top + p_.y.outputs, first, end);
    for (std::int64_t y = begin; y < first; ++y) write(v, y);
    for (std::int64_t y = first; y < last; ++y) {
      if (p_.whole) {
        resize_whole(y - s.top);
      } else {
        resize_real(y - s.top);
      }
      write(v, y);
    }
    if (last < end) fill();
    for (std::int64_t y = last; y < end; ++y) write(v, y);
  }

 private:
  void fill() {
    if (p_.whole) {
      for (std::int64_t x = 0; x < p_.s.width; ++x) std::copy_n(p_.s.pad, 3, levels_ + 4 * x);
      return;
    }
    for (int c = 0; c < 3; ++c) std::fill_n(values_ + c * layout_.plane, p_.s.width, p_.s.pad[c]);
  }

  // Row r as RGB; `slot` is which of the packed rows may be overwritten for it.
  const std::uint8_t* source(std::int64_t r, int slot) {
    const std::uint8_t* row = view_ + r * p_.stride[1];
    if (in_place_ && r + 1 < p_.y.inputs) return row;
    std::uint8_t* to = packed_ + slot * layout_.packed_row;
    if (p_.stride[3] == 1 && p_.stride[2] == 3) {
      std::memcpy(to, row, static_cast<std::size_t>(3 * p_.x.inputs));
      return to;
    }
    for (std::int64_t x = 0; x < p_.x.inputs; ++x) {
      const std::uint8_t* pixel = row + x * p_.stride[2];
      for (int c = 0; c < 3; ++c) to[3 * x + c] = pixel[c * p_.stride[3]];
    }
    return to;
  }

  std::uint8_t* ring(std::int64_t r) { return ring_ + r % layout_.ring_rows * layout_.ring_row; }

  // Resizes rows along x until `end` is reached; a last row stands in for those past the image.
  void advance(std::int64_t end) {
    const std::int64_t last = p_.y.inputs - 1;
    const ImagePrepColumns table{p_.x.offset.data(), p_.x.packed.data(), p_.groups, p_.x.outputs,
                                 p_.stride[1] * kImagePrepTogether};
    for (; next_ < end; next_ += kImagePrepTogether) {
      const std::uint8_t* rows[kImagePrepTogether];
      std::uint8_t* out[kImagePrepTogether];
      for (int i = 0; i < kImagePrepTogether; ++i) {
        const std::int64_t r = std::min(next_ + i, last);
        rows[i] = source(r, i);
        out[i] = ring(r);
      }
      p_.kernels.columns(rows, table, out);
    }
  }

  void expand(std::int64_t end) {
    for (; next_ < end; ++next_) {
      p_.kernels.expand(source(next_, 0), p_.x.outputs, ring(next_));
    }
  }

  void resize_whole(std::int64_t y) {
    const std::int64_t first = p_.y.first[static_cast<std::size_t>(y)];
    if (p_.y.identity && p_.x.identity) {
      p_.kernels.expand(source(first, 0), p_.x.outputs, levels_ + 4 * p_.s.left);
      return;
    }
    const std::int64_t end = std::min(first + p_.y.taps, p_.y.inputs);
    next_ = std::max(next_, first);
    if (p_.x.identity) {
      expand(end);
    } else {
      advance(end);
    }
    blend(y, first, static_cast<int>(end - first));
  }

  // Rows past the last that counts have weight 0: the first stands in for them.
  void blend(std::int64_t y, std::int64_t first, int taps) {
    const int groups = (p_.y.taps + 3) / 4;
    const auto words = static_cast<std::int64_t>(p_.y.packed.size()) / p_.y.outputs;
    for (int k = 0; k < 4 * groups; ++k) pointers_[k] = ring(k < taps ? first + k : first);
    p_.kernels.blend(pointers_, p_.y.packed.data() + y * words, groups, 4 * p_.x.outputs, blent_);
    std::memcpy(levels_ + 4 * p_.s.left, blent_, static_cast<std::size_t>(4 * p_.x.outputs));
  }

  void resize_real(std::int64_t y) {
    const std::int64_t first = p_.y.first[static_cast<std::size_t>(y)];
    const std::uint8_t* above = source(first, 0);
    const std::uint8_t* below = p_.y.taps == 1 ? above : source(first + 1, 1);
    const float* weights = p_.y.real.data() + 2 * y;
    p_.kernels.blend_real(above, below, weights, 3 * p_.x.inputs, blended_);
    const std::int64_t step = p_.x.taps == 1 ? 0 : 3;
    p_.kernels.columns_real(blended_, p_.x.offset.data(), p_.x.real.data(), step, p_.x.outputs,
                            values_ + p_.s.left, layout_.plane);
  }

  void write(std::int64_t v, std::int64_t y) const {
    const ImagePrepSettings& s = p_.s;
    ImagePrepRow row{};
    if (p_.whole) {
      row.levels = levels_;
    } else {
      row.values = values_;
      row.plane = layout_.plane;
    }
    std::int64_t at = v * p_.out_stride;
    row.width = s.width;
    if (s.patch == 0) {
      at += y * s.width;
      row.channel_stride = s.height * s.width;
      row.run = s.width;
    } else {
      const std::int64_t area = s.patch * s.patch;
      at += y / s.patch * (s.width / s.patch) * 3 * area + y % s.patch * s.patch;
      row.channel_stride = area;
      row.run = s.patch;
      row.run_stride = 3 * area;
    }
    row.out = p_.out + at * dtype_size(p_.out_dtype);
    p_.store(row, s.norm);
  }

  const ImagePrepParams& p_;
  const Layout& layout_;
  std::uint8_t* ring_;
  std::uint8_t* blent_;
  std::uint8_t* packed_;
  std::uint8_t* levels_;
  const std::uint8_t** pointers_;
  float* blended_;
  float* values_;
  const std::uint8_t* view_ = nullptr;
  std::int64_t next_ = 0;  // first row that is not yet in the ring
  bool in_place_;
};

// Rows [begin, end) of the flattened [V, S].
void run_rows(const ImagePrepParams& p, Walk& walk, std::int64_t begin, std::int64_t end) {
  while (begin < end) {
    const std::int64_t v = begin / p.s.height;
    const std::int64_t y0 = begin % p.s.height;
    const std::int64_t y1 = std::min(p.s.height, y0 + end - begin);
    walk.rows(v, y0, y1);
    begin += y1 - y0;
  }
}

}  // namespace

std::int64_t image_prep_workspace(const ImagePrepParams& p) {
  return Layout(p).total * p.threads + 64;
}

void image_prep_cpu(const ImagePrepParams& p) {
  const Layout layout(p);
  const auto address = reinterpret_cast<std::uintptr_t>(p.workspace);
  std::uint8_t* memory = p.workspace + (64 - address % 64) % 64;
  const std::int64_t rows = p.views * p.s.height;
  parallel_for(p.threads, p.threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t part = first; part < last; ++part) {
      Walk walk(p, layout, memory + part * layout.total);
      run_rows(p, walk, rows * part / p.threads, rows * (part + 1) / p.threads);
    }
  });
}

}  // namespace vlakern
