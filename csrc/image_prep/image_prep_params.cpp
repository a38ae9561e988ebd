#include <algorithm>
#include <cmath>
#include <utility>

#include "common/thread_pool.h"
#include "image_prep/image_prep.h"

namespace vlakern {
namespace {

// Below this many bytes read and written a second thread costs more than it saves.
constexpr std::int64_t kBytesPerThread = 1 << 18;

ImagePrepKernels choose_kernels(Isa isa) {
  switch (isa) {
#if defined(VLAKERN_HAS_AVX512_BF16)
    case Isa::kAvx512Bf16:
      return image_prep_avx512bf16();
#endif
#if defined(VLAKERN_HAS_AVX512)
    case Isa::kAvx512:
      return image_prep_avx512();
#endif
#if defined(VLAKERN_HAS_AVX2)
    case Isa::kAvx2:
      return image_prep_avx2();
#endif
#if defined(VLAKERN_HAS_NEON)
    case Isa::kNeon:
      return image_prep_neon();
#endif
    default:
      return image_prep_scalar();
  }
}

ImagePrepStore choose_store(const ImagePrepKernels& kernels, DType dtype) {
  if (dtype == DType::kBF16) return kernels.store_bf16;
  return dtype == DType::kF16 ? kernels.store_f16 : kernels.store_f32;
}

void check_shapes(const Dims& dims, const ImagePrepTensors& t, const ImagePrepSettings& s) {
  const auto need = [&dims](bool holds, const char* message) {
    if (!holds) dims.fail(message);
  };
  need(dims["H"] > 0 && dims["W"] > 0, "images must have at least one pixel");
  need(dims["M"] > 0 && dims["N"] > 0, "the resized image must have at least one pixel");
  need(s.top >= 0 && s.left >= 0 && s.height - s.top >= dims["M"] && s.width - s.left >= dims["N"],
       "the resized image must lie inside the output");
  need(s.patch >= 0 && (s.patch == 0 || (s.height % s.patch == 0 && s.width % s.patch == 0)),
       "patch must divide both sides of the output");
  for (float value : s.norm.std) need(value > 0, "std must be positive");
  need(s.norm.divisor > 0, "the divisor must be positive");
  const std::int64_t patches = s.patch == 0 ? 0 : s.height * s.width / (s.patch * s.patch);
  const Tensor& out = t.out;
  if (s.patch == 0) {
    need(out.rank == 4 && out.shape[1] == 3 && out.shape[2] == s.height && out.shape[3] == s.width,
         "out must be [V, 3, S, T]");
  } else {
    need(out.rank == 3 && out.shape[1] == patches && out.shape[2] == 3 * s.patch * s.patch,
         "out must be [V, S/P * T/P, 3PP]");
  }
  need(out.shape[0] == dims["V"], "out must have as many views as images");
  std::int64_t dense = 1;
  for (int i = out.rank - 1; i > 0; --i) {
    need(out.shape[i] == 1 || out.stride[i] == dense, "out must be contiguous within a view");
    dense *= out.shape[i];
  }
  need(out.shape[0] <= 1 || out.stride[0] >= dense, "views of out may not share memory");
}

// Words of one output's group of four weights.
void pack_four(const std::int32_t (&w)[4], ImagePrepLayout layout, std::vector<std::int32_t>& to) {
  if (layout == ImagePrepLayout::kPlain) {
    to.insert(to.end(), w, w + 4);
    return;
  }
  const auto signed_digit = [](std::int32_t value, int bits) {
    const std::int32_t half = 1 << (bits - 1);
    return ((value + half) & (2 * half - 1)) - half;
  };
  if (layout == ImagePrepLayout::kPairs) {
    for (int i = 0; i < 4; i += 2) {
      std::uint32_t upper = 0, lower = 0;
      for (int j = 0; j < 2; ++j) {
        const std::int32_t low = signed_digit(w[i + j], 12);
        lower |= (static_cast<std::uint32_t>(low) & 0xffffu) << (16 * j);
        upper |= (static_cast<std::uint32_t>((w[i + j] - low) >> 12) & 0xffffu) << (16 * j);
      }
      to.push_back(static_cast<std::int32_t>(upper));
      to.push_back(static_cast<std::int32_t>(lower));
    }
    return;
  }
  std::uint32_t digits[3] = {};
  for (int j = 0; j < 4; ++j) {
    std::int32_t rest = w[j];
    for (std::uint32_t& digit : digits) {
      const std::int32_t low = signed_digit(rest, 8);
      digit |= (static_cast<std::uint32_t>(low) & 0xffu) << (8 * j);
      rest = (rest - low) >> 8;
    }
  }
  for (std::uint32_t digit : digits) to.push_back(static_cast<std::int32_t>(digit));
}

void pack(ImagePrepAxis& axis, ImagePrepLayout layout) {
  const int groups = (axis.taps + 3) / 4;
  for (std::int64_t i = 0; i < axis.outputs; ++i) {
    for (int g = 0; g < groups; ++g) {
      std::int32_t four[4] = {};
      for (int j = 0; j < 4 && 4 * g + j < axis.taps; ++j) {
        four[j] = axis.fixed[static_cast<std::size_t>(i * axis.taps + 4 * g + j)];
      }
      pack_four(four, layout, axis.packed);
    }
  }
}

// The weights of the x axis in fours of outputs, as the pass with vpdpbusd reads them.
void spread(ImagePrepAxis& axis) {
  const auto groups = static_cast<std::size_t>(axis.taps + 3) / 4;
  const auto outputs = static_cast<std::size_t>(axis.outputs);
  std::vector<std::int32_t> wide((outputs + 3) / 4 * groups * 48, 0);
  for (std::size_t i = 0; i < outputs * groups * 3; ++i) {
    const std::size_t digit = i % 3, group = i / 3 % groups, x = i / (3 * groups);
    const std::size_t block = (x / 4 * groups + group) * 3 + digit;
    std::fill_n(&wide[(block * 4 + x % 4) * 4], 4, axis.packed[i]);
  }
  axis.packed = std::move(wide);
}

// Weights of a row whose absolute sum is more could overflow a total of levels in 32 bits.
constexpr std::int64_t kLargestSum = (std::int64_t{1} << 31) / 256 - 1;

void copy_fixed(const Dims& dims, const Tensor& weights, ImagePrepAxis& axis) {
  const auto* from = reinterpret_cast<const std::int32_t*>(weights.data);
  for (std::int64_t i = 0; i < axis.outputs; ++i) {
    std::int64_t sum = 0;
    for (std::int64_t k = 0; k < axis.taps; ++k) {
      std::int32_t w = from[i * weights.stride[0] + k * weights.stride[1]];
      if (axis.first[static_cast<std::size_t>(i)] + k >= axis.inputs) w = 0;
      sum += std::abs(static_cast<std::int64_t>(w));
      axis.fixed.push_back(w);
      axis.identity = axis.identity && w == 1 << kImagePrepBits;
    }
    if (sum > kLargestSum) dims.fail("the weights of an output must sum to less than 2");
  }
}

void copy_real(const Dims& dims, const Tensor& weights, ImagePrepAxis& axis) {
  if (axis.taps > 2) dims.fail("fp32 weights must be one or two per output");
  const auto* from = reinterpret_cast<const float*>(weights.data);
  for (std::int64_t i = 0; i < axis.outputs; ++i) {
    if (axis.first[static_cast<std::size_t>(i)] + axis.taps > axis.inputs) {
      dims.fail("an output's inputs must lie in the image");
    }
    for (std::int64_t k = 0; k < 2; ++k) {
      axis.real.push_back(k < axis.taps ? from[i * weights.stride[0] + k * weights.stride[1]]
                                        : 0.0f);
    }
    axis.identity = axis.identity && axis.real[static_cast<std::size_t>(2 * i)] == 1.0f;
  }
}

ImagePrepAxis copy_axis(const Dims& dims, const Tensor& first, const Tensor& weights,
                        std::int64_t inputs) {
  ImagePrepAxis axis{};
  axis.inputs = inputs;
  axis.outputs = first.shape[0];
  axis.taps = static_cast<int>(weights.shape[1]);
  axis.identity = axis.taps == 1 && axis.outputs == inputs;
  const auto* from = reinterpret_cast<const std::int32_t*>(first.data);
  std::int32_t before = 0;
  for (std::int64_t i = 0; i < axis.outputs; ++i) {
    const std::int32_t at = from[i * first.stride[0]];
    if (at < before || at >= inputs) dims.fail("first inputs must ascend inside the image");
    axis.identity = axis.identity && at == i;
    axis.first.push_back(before = at);
    axis.offset.push_back(3 * at);
  }
  axis.offset.resize(axis.offset.size() + 3, axis.offset.back());
  if (weights.dtype == DType::kI32) {
    copy_fixed(dims, weights, axis);
  } else {
    copy_real(dims, weights, axis);
  }
  return axis;
}

int choose_threads(const ImagePrepParams& p, int threads) {
  const std::int64_t bytes =
      3 * p.y.inputs * p.x.inputs + 3 * p.s.height * p.s.width * dtype_size(p.out_dtype);
  const int most = threads > 0 ? threads : default_threads();
  return static_cast<int>(std::clamp<std::int64_t>(p.views * bytes / kBytesPerThread, 1, most));
}

}  // namespace

ImagePrepParams image_prep_params(const ImagePrepTensors& t, const ImagePrepSettings& s,
                                  const std::string& isa, int threads) {
  Dims dims("image_prep");
  dims.check("images", t.images, {"V", "H", "W", "3"}, {DType::kU8});
  dims.check("y_first", t.y_first, {"M"}, {DType::kI32});
  dims.check("y_weights", t.y_weights, {"M", "K"}, {DType::kI32, DType::kF32});
  dims.check("x_first", t.x_first, {"N"}, {DType::kI32});
  dims.check("x_weights", t.x_weights, {"N", "L"}, {t.y_weights.dtype});
  if (dims["K"] < 1 || dims["L"] < 1) dims.fail("an output must have at least one weight");
  const auto pixels = {DType::kF32, DType::kBF16, DType::kF16};
  if (std::find(pixels.begin(), pixels.end(), t.out.dtype) == pixels.end()) {
    dims.fail("out must be float32, bfloat16 or float16");
  }
  check_shapes(dims, t, s);
  ImagePrepParams p{};
  p.images = reinterpret_cast<const std::uint8_t*>(t.images.data);
  std::copy_n(t.images.stride, 4, p.stride);
  p.out = reinterpret_cast<char*>(t.out.data);
  p.out_stride = t.out.stride[0];
  p.out_dtype = t.out.dtype;
  p.views = t.images.shape[0];
  p.s = s;
  p.y = copy_axis(dims, t.y_first, t.y_weights, t.images.shape[1]);
  p.x = copy_axis(dims, t.x_first, t.x_weights, t.images.shape[2]);
  p.whole = t.y_weights.dtype == DType::kI32;
  p.kernels = choose_kernels(select_isa(isa));
  p.store = choose_store(p.kernels, p.out_dtype);
  p.groups = (p.x.taps + 3) / 4;
  if (p.whole) {
    pack(p.x, p.kernels.layout);
    pack(p.y, p.kernels.layout);
    if (p.kernels.layout == ImagePrepLayout::kBytes) spread(p.x);
  }
  p.threads = choose_threads(p, threads);
  return p;
}

}  // namespace vlakern
