#include "policy/pack_model.h"

#include <cstring>
#include <utility>

#include "common/error.h"
#include "common/number.h"
#include "policy/tables.h"
#include "policy/weights_file.h"

namespace vlakern {
namespace {

using Values = std::vector<float>;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

void scale_columns(Rows2D& w, const Values& scale) {
  for (std::int64_t i = 0; i < w.n; ++i) {
    for (std::int64_t j = 0; j < w.k; ++j) w.row(i)[j] *= scale[at(j)];
  }
}

void scale_rows(Rows2D& w, const Values& scale) {
  for (std::int64_t i = 0; i < w.n; ++i) {
    for (std::int64_t j = 0; j < w.k; ++j) w.row(i)[j] *= scale[at(i)];
  }
}

Rows2D join(const std::vector<Rows2D>& parts) {
  Rows2D all{{}, 0, parts[0].k};
  for (const Rows2D& part : parts) {
    all.values.insert(all.values.end(), part.values.begin(), part.values.end());
    all.n += part.n;
  }
  return all;
}

Rows2D columns(const Rows2D& w, std::int64_t first, std::int64_t count) {
  Rows2D part{{}, w.n, count};
  for (std::int64_t i = 0; i < w.n; ++i) {
    part.values.insert(part.values.end(), w.row(i) + first, w.row(i) + first + count);
  }
  return part;
}

// W v in double, rounded once.
Values product(const Rows2D& w, const Values& v) {
  Values out;
  for (std::int64_t i = 0; i < w.n; ++i) {
    double sum = 0.0;
    for (std::int64_t j = 0; j < w.k; ++j) {
      sum += static_cast<double>(w.row(i)[j]) * static_cast<double>(v[at(j)]);
    }
    out.push_back(static_cast<float>(sum));
  }
  return out;
}

Rows2D product(const Rows2D& a, const Rows2D& b) {
  Rows2D out{{}, a.n, b.k};
  Values column(at(b.n));
  out.values.resize(at(out.n * out.k));
  for (std::int64_t j = 0; j < b.k; ++j) {
    for (std::int64_t i = 0; i < b.n; ++i) column[at(i)] = b.row(i)[j];
    const Values found = product(a, column);
    for (std::int64_t i = 0; i < a.n; ++i) out.row(i)[j] = found[at(i)];
  }
  return out;
}

Values sum(Values a, const Values& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

class Packer {
 public:
  Packer(const ModelConfig& model, const std::string& path, const std::string& dtype, int threads)
      : model_(model),
        s_(model.sizes),
        file_(path),
        large_(linear_kind(dtype)),
        small_(large_ == LinearKind::kF32 ? LinearKind::kF32 : LinearKind::kBF16),
        apart_(large_ == LinearKind::kBF16),
        threads_(threads) {}

  PackedModel pack(std::int64_t positions) {
    vision();
    edges();
    for (std::int64_t i = 0; i < s_.layers; ++i) {
      layer("semantic", s_.semantic, i);
      layer("action", s_.action, i);
    }
    vector("mot.semantic.norm.weight", s_.semantic.hidden);  // of training alone
    file_.check_all_read();
    const Angles angles = position_angles(model_, positions);
    table("rope.cos", angles.cos, s_.head_dim / 2);
    table("rope.sin", angles.sin, s_.head_dim / 2);
    return std::move(out_);
  }

 private:
  Values vector(const std::string& name, std::int64_t n) { return file_.read(name, {n}); }
  Rows2D matrix(const std::string& name, std::int64_t n, std::int64_t k) {
    return {file_.read(name + ".weight", {n, k}), n, k};
  }
  Values bias(const std::string& name, std::int64_t n) { return vector(name + ".bias", n); }

  void put(const std::string& name, const Rows2D& w, const Values& bias, LinearKind kind,
           bool gate = false) {
    PackedMatrix packed = pack_matrix(w, kind, bias, gate, threads_);
    out_.memory.push_back(std::move(packed.memory));
    out_.weights.matrices[name] = packed.tensors;
  }
  void large(const std::string& name, const Rows2D& w, const Values& bias = {}) {
    put(name, w, bias, large_);
  }
  void small(const std::string& name, const Rows2D& w, const Values& bias = {}) {
    put(name, w, bias, small_);
  }

  // fp32 rows, or a vector where `width` is 0.
  void table(const std::string& name, const Values& values, std::int64_t width) {
    const auto count = static_cast<std::int64_t>(values.size());
    Tensor& t = out_.weights.tensors[name];
    out_.memory.emplace_back(values.size() * sizeof(float));
    std::copy(values.begin(), values.end(), out_.memory.back().as<float>());
    t = {out_.memory.back().address(), DType::kF32, width == 0 ? 1 : 2, {count}, {1}};
    if (width == 0) return;
    t.shape[0] = count / width;
    t.shape[1] = t.stride[0] = width;
    t.stride[1] = 1;
  }

  // [out, in, height, width] to rows of [in, height, width], or of [height, width, in].
  Rows2D convolution(const std::string& name, std::int64_t n, std::int64_t in, std::int64_t side,
                     bool channels_last) {
    const Values read = file_.read(name + ".weight", {n, in, side, side});
    const std::int64_t area = side * side;
    if (!channels_last) return {read, n, in * area};
    Rows2D w{Values(read.size()), n, in * area};
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t c = 0; c < in; ++c) {
        for (std::int64_t p = 0; p < area; ++p) {
          w.row(i)[p * in + c] = read[at((i * in + c) * area + p)];
        }
      }
    }
    return w;
  }

  void vision() {
    const VisionSizes& v = s_.vision;
    std::int64_t channels = 3;
    for (std::size_t i = 0; i < v.stem.size(); ++i) {
      const std::string name = "vision.stem." + std::to_string(i);
      small(name, convolution(name, v.stem[i], channels, 3, true), bias(name, v.stem[i]));
      channels = v.stem[i];
    }
    const Rows2D patch =
        convolution("vision.patch", v.hidden, channels, v.patch_side(), !v.stem.empty());
    small("vision.patch", patch, bias("vision.patch", v.hidden));
    Values place = file_.read("vision.position", {v.rows(), v.hidden});
    if (v.class_token) {
      const Values token = vector("vision.class_token", v.hidden);
      for (std::size_t i = 0; i < token.size(); ++i) place[i] += token[i];
    }
    table("vision.place", place, v.hidden);
    for (std::int64_t i = 0; i < v.layers; ++i) vision_layer(i);
    connector();
  }

  void vision_layer(std::int64_t i) {
    const VisionSizes& v = s_.vision;
    const std::string name = "vision." + std::to_string(i);
    const std::string block = "vision.blocks." + std::to_string(i);
    after_norm(name + ".qkv", block + ".qkv", block + ".norm1", name + ".norm1", 3 * v.hidden,
               v.hidden);
    scaled(name + ".proj", block + ".proj", block + ".scale1", v.hidden, v.hidden);
    after_norm(name + ".fc1", block + ".fc1", block + ".norm2", name + ".norm2", v.mlp, v.hidden);
    scaled(name + ".fc2", block + ".fc2", block + ".scale2", v.hidden, v.mlp);
  }

  // The weight of a norm: into the columns of what follows, or apart under the name `kept`.
  void put_norm(Rows2D& w, const Values& weight, const std::string& kept) {
    apart_ ? table(kept, weight, 0) : scale_columns(w, weight);
  }

  // W (w n + b) + c = (W w) n + (W b + c).
  void after_norm(const std::string& name, const std::string& linear, const std::string& norm,
                  const std::string& kept, std::int64_t n, std::int64_t k) {
    Rows2D w = matrix(linear, n, k);
    const Values c = sum(bias(linear, n), product(w, bias(norm, k)));
    put_norm(w, vector(norm + ".weight", k), kept);
    large(name, w, c);
  }

  void scaled(const std::string& name, const std::string& linear, const std::string& scale,
              std::int64_t n, std::int64_t k) {
    Rows2D w = matrix(linear, n, k);
    Values c = bias(linear, n);
    if (model_.layer_scale) {
      const Values factor = vector(scale, n);
      scale_rows(w, factor);
      for (std::size_t i = 0; i < c.size(); ++i) c[i] *= factor[i];
    }
    large(name, w, c);
  }

  void connector() {
    const VisionSizes& v = s_.vision;
    const std::int64_t width = s_.semantic.hidden, joined = v.joined();
    if (!v.linear_connector) {
      after_norm("connector.0", "vision.connector.1", "vision.connector.0", "connector.norm", width,
                 joined);
      large("connector.1", matrix("vision.connector.3", width, width),
            bias("vision.connector.3", width));
      return;
    }
    Rows2D w = matrix("vision.connector", width, joined);
    Values c = bias("vision.connector", width);
    if (v.final_norm) {
      const Values scale = vector("vision.final_norm.weight", v.hidden);
      const Values shift = bias("vision.final_norm", v.hidden);
      Values scales, shifts;
      for (std::int64_t i = 0; i < v.shuffle * v.shuffle; ++i) {
        scales.insert(scales.end(), scale.begin(), scale.end());
        shifts.insert(shifts.end(), shift.begin(), shift.end());
      }
      c = sum(c, product(w, shifts));
      apart_ ? table("vision.final_norm", scale, 0) : scale_columns(w, scales);
    }
    large("connector.0", w, c);
  }

  void embeddings() {
    const Values values = file_.read("embed_tokens.weight", {s_.vocab, s_.semantic.hidden});
    if (small_ == LinearKind::kF32) return table("embed", values, s_.semantic.hidden);
    out_.memory.emplace_back(values.size() * sizeof(bf16));
    auto* const rounded = out_.memory.back().as<bf16>();
    for (std::size_t i = 0; i < values.size(); ++i) rounded[i] = from_float<bf16>(values[i]);
    out_.weights.tensors["embed"] = {out_.memory.back().address(),
                                     DType::kBF16,
                                     2,
                                     {s_.vocab, s_.semantic.hidden},
                                     {s_.semantic.hidden, 1}};
  }

  void edges() {
    const std::int64_t width = s_.action.hidden, owner = s_.state_width();
    embeddings();
    if (s_.linear_state) {
      small("state.0", matrix("state_encoder", owner, s_.state), bias("state_encoder", owner));
    } else {
      small("state.0", matrix("state_encoder.0", owner, s_.state), bias("state_encoder.0", owner));
      small("state.1", matrix("state_encoder.2", owner, owner), bias("state_encoder.2", owner));
    }
    mixed_actions();
    const Values norm = vector("mot.action.norm.weight", width);
    const std::string decoder = "action_decoder";
    Rows2D first =
        s_.linear_out ? matrix(decoder, s_.slots, width) : matrix(decoder + ".0", width, width);
    put_norm(first, norm, "action.norm");
    if (s_.linear_out) return small("action_out.last", first, bias(decoder, s_.slots));
    small("action_out.first", first, bias(decoder + ".0", width));
    small("action_out.last", matrix(decoder + ".2", s_.slots, width),
          bias(decoder + ".2", s_.slots));
  }

  // The first action product is folded into the half of the next one that sees actions; what the
  // other half makes of flow time becomes a table.
  void mixed_actions() {
    const std::int64_t width = s_.action.hidden;
    const std::string name = "action_encoder.w";
    const Rows2D w1 = matrix(name + "1", width, s_.slots),
                 w2 = matrix(name + "2", width, 2 * width);
    const Rows2D seen = columns(w2, 0, width), timed = columns(w2, width, width);
    small("action_in.first", product(seen, w1));
    const Values c = sum(bias(name + "2", width), product(seen, bias(name + "1", width)));
    Values times;
    for (const float tau : evaluation_times(s_)) {
      const Values row = sum(product(timed, time_embedding(tau, width, model_.time)), c);
      times.insert(times.end(), row.begin(), row.end());
    }
    table("action_in.time", times, width);
    small("action_in.last", matrix(name + "3", width, width), bias(name + "3", width));
  }

  void layer(const std::string& expert, const ExpertSizes& e, std::int64_t i) {
    const std::string source = "mot." + expert + ".layers." + std::to_string(i);
    const std::string name = expert + "." + std::to_string(i);
    const bool last = i == s_.layers - 1, semantic = expert == "semantic";
    if (s_.qk_norm) {
      table(name + ".q_norm", vector(source + ".q_norm.weight", s_.head_dim), 0);
      table(name + ".k_norm", vector(source + ".k_norm.weight", s_.head_dim), 0);
    }
    const Values norm = vector(source + ".input_norm.weight", e.hidden);
    const auto normed = [&](const std::string& part, std::int64_t n, const Values& of) {
      Rows2D w = matrix(source + part, n, e.hidden);
      if (!apart_) scale_columns(w, of);
      return w;
    };
    if (apart_) table(name + ".input_norm", norm, 0);
    const Rows2D k = normed(".k_proj", s_.kv_width(), norm);
    const Rows2D v = normed(".v_proj", s_.kv_width(), norm);
    if (last && (semantic || s_.owner == StateOwner::kAction)) large(name + ".kv", join({k, v}));
    const Rows2D q = normed(".q_proj", s_.q_width(), norm);
    const Values after = vector(source + ".post_norm.weight", e.hidden);
    const Rows2D o = matrix(source + ".o_proj", e.hidden, s_.q_width());
    const Rows2D gate = normed(".gate_proj", e.mlp, after), up = normed(".up_proj", e.mlp, after);
    const Rows2D down = matrix(source + ".down_proj", e.hidden, e.mlp);
    if (last && semantic) return;  // nothing reads what it makes but keys and values
    if (apart_) table(name + ".post_norm", after, 0);
    large(name + ".qkv", join({q, k, v}));
    large(name + ".o", o);
    put(name + ".gate_up", join({gate, up}), {}, large_, true);
    large(name + ".down", down);
  }

  const ModelConfig& model_;
  const ModelSizes& s_;
  WeightsFile file_;
  LinearKind large_, small_;
  bool apart_;  // weights of norms stay so: folded ones would be rounded a second time
  int threads_;
  PackedModel out_;
};

}  // namespace

PackedModel pack_model(const ModelConfig& model, const std::string& path, const std::string& dtype,
                       std::int64_t positions, int threads) {
  if (dtype != "fp32" && dtype != "bf16" && dtype != "int8") {
    throw UnsupportedError("dtype '" + dtype + "' is not supported; use fp32, bf16 or int8");
  }
  return Packer(model, path, dtype, threads).pack(positions);
}

}  // namespace vlakern
