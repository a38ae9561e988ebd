#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/error.h"
#include "common/thread_pool.h"
#include "engine/engine.h"
#include "engine/engine_calls.h"
#include "shared_attention/shared_attention.h"

namespace vlakern {
namespace {

struct Plane {
  const char* data;  // [side, side, channels]
  std::int64_t side, channels;
  int size;  // of an element [bytes]
};

// Row (y, x) of `out` is the window of `width` x `width` pixels from (y, x) * step - before on,
// ordered by row, column, channel. Outside are zeros.
void gather_windows(const Plane& in, std::int64_t width, std::int64_t step, std::int64_t before,
                    char* out, int threads) {
  const std::int64_t outputs = in.side / step, row_bytes = width * width * in.channels * in.size;
  parallel_for(threads, outputs, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t y = begin; y < end; ++y) {
      for (std::int64_t x = 0; x < outputs; ++x) {
        char* row = out + (y * outputs + x) * row_bytes;
        for (std::int64_t i = 0; i < width * width; ++i) {
          const std::int64_t from_y = y * step - before + i / width;
          const std::int64_t from_x = x * step - before + i % width;
          const bool inside = from_y >= 0 && from_y < in.side && from_x >= 0 && from_x < in.side;
          const char* pixel = in.data + (from_y * in.side + from_x) * in.channels * in.size;
          char* to = row + i * in.channels * in.size;
          const auto bytes = static_cast<std::size_t>(in.channels * in.size);
          inside ? std::memcpy(to, pixel, bytes) : std::memset(to, 0, bytes);
        }
      }
    }
  });
}

// Every square of patches becomes one row, its patches in raster order.
void join_squares(const VisionSizes& v, const float* rows, float* joined) {
  const std::int64_t grid = v.grid(), side = grid / v.shuffle;
  const auto bytes = static_cast<std::size_t>(v.hidden) * sizeof(float);
  for (std::int64_t y = 0; y < grid; ++y) {
    for (std::int64_t x = 0; x < grid; ++x) {
      const std::int64_t token = y / v.shuffle * side + x / v.shuffle;
      const std::int64_t place = y % v.shuffle * v.shuffle + x % v.shuffle;
      std::memcpy(joined + token * v.joined() + place * v.hidden, rows + (y * grid + x) * v.hidden,
                  bytes);
    }
  }
}

}  // namespace

// x = place + patches W^T, one view at a time, since the class token's row lies before each.
void Engine::embed_view(std::int64_t view) const {
  const VisionSizes& v = model_.sizes.vision;
  const Calls calls(isa_, threads_, at_.workspace);
  const int size = dtype_size(model_.dtype);
  const std::int64_t patches = v.grid() * v.grid(), width = model_.patch.k;
  const char* pixels =
      at_.patches + view * (model_.stem.empty() ? patches * width : v.image * v.image * 3) * size;
  if (!model_.stem.empty()) {
    Plane plane{pixels, v.image, 3, size};
    for (std::size_t i = 0; i < model_.stem.size(); ++i) {
      const Matrix& w = model_.stem[i];
      const std::int64_t side = plane.side / 2;
      gather_windows(plane, 3, 2, 1, at_.stem_rows, threads_);
      calls.linear(w, side * side, rows_of(at_.stem_rows, w.k, model_.dtype),
                   rows_of(at_.stem[i % 2], w.n, model_.dtype));
      plane = {at_.stem[i % 2], side, w.n, size};
    }
    gather_windows(plane, v.patch_side(), v.patch_side(), 0, at_.stem_rows, threads_);
    pixels = at_.stem_rows;
  }
  float* x = at_.vision_x + view * v.rows() * v.hidden;
  const std::int64_t first = v.class_token ? v.hidden : 0;
  std::memcpy(x, model_.place, static_cast<std::size_t>(first) * sizeof(float));
  calls.linear(model_.patch, patches, rows_of(const_cast<char*>(pixels), width, model_.dtype),
               rows_of(x + first, v.hidden),
               rows_of(const_cast<float*>(model_.place) + first, v.hidden));
}

void Engine::vision(std::int64_t views) const {
  const VisionSizes& v = model_.sizes.vision;
  if (views < 0 || views > limits_.views) {
    throw InputError("engine: found " + std::to_string(views) + " views, built for at most " +
                     std::to_string(limits_.views));
  }
  const Calls calls(isa_, threads_, at_.workspace);
  const std::int64_t rows = views * v.rows(), head = v.hidden / v.heads;
  for (std::int64_t view = 0; view < views; ++view) embed_view(view);
  for (std::int64_t view = 0; view <= views; ++view) {
    at_.vision_cu[view] = static_cast<std::int32_t>(view * v.rows());
  }
  std::fill_n(at_.vision_kv_end, rows, static_cast<std::int32_t>(v.rows()));
  const Rows x = rows_of(at_.vision_x, v.hidden), normed = rows_of(at_.vision_normed, v.hidden);
  const Rows qkv = rows_of(at_.vision_qkv, 3 * v.hidden, model_.dtype);
  const Rows out = rows_of(at_.vision_out, v.hidden, model_.dtype);
  const Rows hidden = rows_of(at_.vision_hidden, v.mlp, model_.dtype);
  const Tensor cu = vector_of(at_.vision_cu, views + 1, DType::kI32);
  const Tensor lse{
      reinterpret_cast<std::uintptr_t>(at_.lse), DType::kF32, 2, {rows, v.heads}, {v.heads, 1}};
  const SharedAttentionTensors attention = attention_of(
      heads_of(qkv, rows, v.heads, head), heads_of(qkv.columns(v.hidden), rows, v.heads, head),
      heads_of(qkv.columns(2 * v.hidden), rows, v.heads, head), cu,
      vector_of(at_.vision_kv_end, rows, DType::kI32), heads_of(out, rows, v.heads, head), lse);
  const float scale = 1.0f / std::sqrt(static_cast<float>(head));
  for (const VisionLayer& layer : model_.vision) {
    calls.norm(NormKind::kLayer, rows, v.hidden, v.eps, x, normed, layer.norm1);
    calls.linear(layer.qkv, rows, normed, qkv);
    shared_attention_cpu(attention, scale, isa_name_, threads_);
    calls.linear(layer.proj, rows, out, x, true);
    calls.norm(NormKind::kLayer, rows, v.hidden, v.eps, x, normed, layer.norm2);
    calls.linear(layer.fc1, rows, normed, hidden);
    calls.linear(layer.fc2, rows, hidden, x, true);
  }
  connect(views);
}

void Engine::connect(std::int64_t views) const {
  const VisionSizes& v = model_.sizes.vision;
  const Calls calls(isa_, threads_, at_.workspace);
  const std::int64_t tokens = views * v.tokens(), width = model_.sizes.semantic.hidden;
  const Rows x = rows_of(at_.vision_x, v.hidden);
  if (v.final_norm) {
    calls.norm(NormKind::kLayer, views * v.rows(), v.hidden, v.eps, x, x, model_.final_norm);
  }
  for (std::int64_t view = 0; view < views; ++view) {
    const std::int64_t first = view * v.rows() + (v.class_token ? 1 : 0);
    join_squares(v, at_.vision_x + first * v.hidden,
                 at_.vision_joined + view * v.tokens() * v.joined());
  }
  const Rows joined = rows_of(at_.vision_joined, v.joined());
  const Rows normed = rows_of(at_.vision_normed, v.joined());
  const Rows image_tokens = rows_of(at_.image_tokens, width);
  if (v.linear_connector) {
    calls.linear(model_.connector, tokens, joined, image_tokens);
    return;
  }
  const Rows hidden = rows_of(at_.vision_hidden, width, model_.dtype);
  calls.norm(NormKind::kLayer, tokens, v.joined(), v.eps, joined, normed, model_.connector_norm);
  calls.linear(model_.connector, tokens, normed, hidden);
  calls.linear(*model_.connector_last, tokens, hidden, image_tokens);
}

}  // namespace vlakern
