// Random problems for ode_loop, and what they come to by the formulas in double: dull and slow.
#pragma once

#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "ode_loop/ode_loop_index.h"
#include "tests/array.h"

namespace vlakern::tests {

class OdeLoopProblem {
 public:
  using Vector = std::vector<double>;

  explicit OdeLoopProblem(unsigned number) : random_(number + 1) {
    constexpr int kShapes[][2] = {{1, 6}, {2, 16}, {3, 16}, {1, 17}, {1, 50}, {9, 7}, {1, 16}};
    const auto& shape = kShapes[number % 7];
    n_["chunks"] = shape[0];
    n_["chunk"] = shape[1];
    n_["head_dim"] = 64 << number % 3;
    n_["groups"] = 1 + pick(2);
    n_["heads"] = n_["groups"] * (1 + pick(2));
    n_["width"] = 16 * (2 + pick(4));
    n_["mlp"] = 16 * (2 + pick(5));
    n_["slots"] = 3 + pick(20);
    n_["layers"] = 1 + pick(2);
    n_["splits"] = 1 + pick(3);
    n_["steps"] = 1 + pick(2);
    n_["eps"] = 1e-6;
    const double solvers[][5] = {{1, 0, 1, 0, 0}, {2, 0, .5, 0, 1}, {2, 0, 1, .5, .5}};
    const auto& solver = solvers[pick(3)];
    n_["stages"] = solver[0];
    for (int i = 0; i < 2; ++i) {
      n_["c0." + std::to_string(i)] = solver[1 + 2 * i];
      n_["c1." + std::to_string(i)] = solver[2 + 2 * i];
    }
    make_weights();
    make_inputs();
    make_memory();
    std::map<std::string, Tensor> views;
    for (auto& [name, array] : arrays_) views[name] = array.view;
    params_ = ode_loop_params(views, n_);
  }

  const OdeLoopParams& params() const { return params_; }
  std::string said() const {
    std::string text;
    for (const auto& [name, value] : n_) text += name + " " + std::to_string(value) + " ";
    return text;
  }

  // NaN in all that a launch writes before it reads; the counter is as the last one left it.
  void spoil() {
    for (const char* name : {"x", "velocity", "input", "embedded", "stream", "rounded", "qkv",
                             "attended", "hidden", "parts", "part_rows"}) {
      std::fill(arrays_[name].bytes.begin(), arrays_[name].bytes.end(), 0xff);
    }
  }
  std::vector<float> actions() const {
    std::vector<float> found;
    const Array& x = arrays_.at("x");
    for (std::int64_t i = 0; i < x.elements(); ++i) found.push_back(x.get(i));
    return found;
  }

  // The actions in double; `rounds` rounds to bf16 what the kernel keeps as bf16.
  std::vector<double> plain(bool rounds) const {
    const int stages = of("stages"), slots = of("slots");
    Vector x = all("noise"), at = x, first;
    for (int evaluation = 0; evaluation < of("steps") * stages; ++evaluation) {
      const int stage = evaluation % stages;
      const Vector v = velocity(at, evaluation, rounds);
      const double c0 = params_.c0[stage], c1 = params_.c1[stage];
      for (int i = 0; i < static_cast<int>(x.size()); ++i) {
        const int row = i / slots, chunk = row / of("chunk");
        if (row % of("chunk") < params_.frozen_len[chunk]) {
          at[std::size_t(i)] = params_.frozen[i];
        } else if (params_.slot_mask[chunk * slots + i % slots] == 0) {
          at[std::size_t(i)] = x[std::size_t(i)];
        } else {
          const double slope = (c0 != 0 ? c0 * first[std::size_t(i)] : 0) + c1 * v[std::size_t(i)];
          at[std::size_t(i)] = x[std::size_t(i)] + slope / of("steps");
        }
      }
      if (stage == 0) first = v;
      if (stage + 1 == stages) x = at;
    }
    return x;
  }

 private:
  int pick(int n) { return static_cast<int>(random_() % unsigned(n)); }
  int of(const char* name) const { return static_cast<int>(n_.at(name)); }
  int rows() const { return of("chunks") * of("chunk"); }

  Array& make(const std::string& name, DType dtype, std::vector<std::int64_t> shape) {
    std::vector<std::int64_t> stride(shape.size(), 1);
    for (std::size_t i = shape.size() - 1; i > 0; --i) stride[i - 1] = stride[i] * shape[i];
    return arrays_[name] = Array(dtype, shape, stride);
  }
  void fill(const std::string& name, DType dtype, std::vector<std::int64_t> shape, double scale,
            double mean = 0) {
    std::normal_distribution<double> normal;
    Array& a = make(name, dtype, shape);
    for (std::int64_t i = 0; i < a.elements(); ++i)
      a.set(i, static_cast<float>(mean + scale * normal(random_)));
  }
  // [rows, k rounded up to 16], zeros beyond k.
  void matrix(const std::string& name, int rows, int k) {
    const int pitch = round_up(k, 16);
    fill(name, DType::kBF16, {rows, pitch}, 1.0 / std::sqrt(k));
    Array& a = arrays_[name];
    for (std::int64_t i = 0; i < a.elements(); ++i)
      if (i % pitch >= k) a.set(i, 0);
  }

  void make_weights() {
    const int m = of("width"), d = of("head_dim"), f = of("mlp");
    for (int i = 0; i < of("layers"); ++i) {
      const std::string layer = "layer." + std::to_string(i) + ".";
      matrix(layer + "qkv", (of("heads") + 2 * of("groups")) * d, m);
      matrix(layer + "o", m, of("heads") * d);
      matrix(layer + "gate_up", 2 * f, m);
      matrix(layer + "down", m, f);
      fill(layer + "q_norm", DType::kF32, {d}, 0.2, 1);
      fill(layer + "k_norm", DType::kF32, {d}, 0.2, 1);
    }
    matrix("embed_first", m, of("slots"));
    matrix("embed_last", m, m);
    matrix("unembed_first", m, m);
    matrix("unembed_last", of("slots"), m);
    for (const char* name : {"embed_bias", "unembed_first_bias"}) fill(name, DType::kF32, {m}, 0.3);
    fill("unembed_last_bias", DType::kF32, {of("slots")}, 0.3);
  }

  std::int32_t* i32(const std::string& name, std::vector<std::int64_t> shape) {
    return reinterpret_cast<std::int32_t*>(make(name, DType::kI32, shape).bytes.data());
  }

  void make_inputs() {
    const int n = of("chunks"), h = of("chunk"), slots = of("slots"), prefixes = 1 + pick(3);
    fill("noise", DType::kF32, {n, h, slots}, 1);
    fill("frozen", DType::kF32, {n, h, slots}, 1);
    fill("time_table", DType::kF32, {5, of("width")}, 0.5);
    std::int32_t* cu = i32("cu_prefix", {prefixes + 1});
    cu[0] = pick(3);  // a leading part that is nobody's
    for (int i = 0; i < prefixes; ++i) cu[i + 1] = cu[i] + (pick(4) == 0 ? 0 : pick(70));
    const int tokens = cu[prefixes] + 1 + pick(3), last = h + 70;
    fill("kv", DType::kBF16, {of("layers"), 2, tokens, of("groups") * of("head_dim")}, 1);
    std::int32_t *index = i32("prefix_index", {n}), *frozen = i32("frozen_len", {n});
    std::int32_t *end = i32("kv_end", {n * h}), *place = i32("positions", {n * h});
    const int causal = pick(2);
    for (int i = 0; i < n; ++i) {
      index[i] = pick(prefixes);
      frozen[i] = pick(2) * pick(h + 1);
      const int before = cu[index[i] + 1] - cu[index[i]];
      for (int j = 0; j < h; ++j) {
        place[i * h + j] = before + j;
        end[i * h + j] = n > 1 && i == n - 1 ? 0 : before + (causal != 0 ? j + 1 : h);
      }
    }
    std::int32_t* times = i32("times", {of("steps") * of("stages"), n * h});
    for (int i = 0; i < of("steps") * of("stages") * n * h; ++i) times[i] = pick(5);
    Array& mask = make("slot_mask", DType::kU8, {n, slots});
    for (auto& byte : mask.bytes) byte = static_cast<unsigned char>(pick(4) != 0);
    Array& cos = make("cos", DType::kF32, {last, of("head_dim") / 2});
    Array& sin = make("sin", DType::kF32, {last, of("head_dim") / 2});
    for (std::int64_t i = 0; i < cos.elements(); ++i) {
      const double half = of("head_dim") / 2.0,
                   angle = std::floor(double(i) / half) *
                           std::pow(1e4, -std::fmod(double(i), half) / half);
      cos.set(i, static_cast<float>(std::cos(angle)));
      sin.set(i, static_cast<float>(std::sin(angle)));
    }
  }

  void make_memory() {
    const int r = rows(), m = of("width"), d = of("head_dim");
    make("x", DType::kF32, {of("chunks"), of("chunk"), of("slots")});
    make("velocity", DType::kF32, {r, of("slots")});
    make("input", DType::kBF16, {r, round_up(of("slots"), 16)});
    make("embedded", DType::kBF16, {r, m});
    make("stream", DType::kF32, {r, m});
    make("rounded", DType::kBF16, {r, m});
    make("qkv", DType::kBF16, {r, (of("heads") + 2 * of("groups")) * d});
    make("attended", DType::kBF16, {r, of("heads") * d});
    make("hidden", DType::kBF16, {r, std::max(of("mlp"), m)});
    const int units = of("chunks") * of("heads") * ceil_div(of("chunk"), 16);
    make("parts", DType::kF32, {units, of("splits"), 16, d});
    make("part_rows", DType::kF32, {units, of("splits"), 16, 2});
    std::fill_n(i32("joined", {units}), units, 0);
    *i32("counter", {1}) = 0;
  }

  Vector all(const std::string& name) const {
    const Array& a = arrays_.at(name);
    Vector found;
    for (std::int64_t i = 0; i < a.elements(); ++i) found.push_back(a.get(i));
    return found;
  }
  static double bf(double x, bool rounds) {
    return rounds ? to_float(from_float<bf16>(static_cast<float>(x))) : x;
  }
  static void round(Vector& x, bool rounds) {
    for (double& one : x) one = bf(one, rounds);
  }

  // x [rows, k of the pitch] times w [columns, pitch].
  Vector times(const Vector& x, const std::string& name) const {
    const Array& w = arrays_.at(name);
    const auto columns = w.view.shape[0], pitch = w.view.shape[1];
    const auto k = static_cast<std::int64_t>(x.size()) / rows();
    const Vector weight = all(name);
    Vector y(std::size_t(rows() * columns));
    for (std::int64_t row = 0; row < rows(); ++row)
      for (std::int64_t n = 0; n < columns; ++n)
        for (std::int64_t i = 0; i < k; ++i)
          y[std::size_t(row * columns + n)] +=
              x[std::size_t(row * k + i)] * weight[std::size_t(n * pitch + i)];
    return y;
  }
  void add_bias(Vector& x, const std::string& name) const {
    const Vector bias = all(name);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += bias[i % bias.size()];
  }
  Vector normed(const Vector& x, bool rounds) const {
    const std::size_t width = x.size() / std::size_t(rows());
    Vector y = x;
    for (std::size_t row = 0; row < std::size_t(rows()); ++row) {
      double sum = 0;
      for (std::size_t i = 0; i < width; ++i) sum += x[row * width + i] * x[row * width + i];
      for (std::size_t i = 0; i < width; ++i)
        y[row * width + i] /= std::sqrt(sum / double(width) + n_.at("eps"));
    }
    round(y, rounds);
    return y;
  }

  Vector velocity(Vector x, int evaluation, bool rounds) const {
    const std::size_t m = std::size_t(of("width")), f = std::size_t(of("mlp"));
    round(x, rounds);
    Vector hidden = times(x, "embed_first");
    for (std::size_t i = 0; i < hidden.size(); ++i) {
      const std::size_t time =
          std::size_t(params_.times[evaluation * params_.times_pitch + int(i / m)]);
      hidden[i] = silu(hidden[i] + params_.time_table[time * m + i % m]);
    }
    round(hidden, rounds);
    Vector s = times(hidden, "embed_last");
    add_bias(s, "embed_bias");
    for (int layer = 0; layer < of("layers"); ++layer) {
      const std::string name = "layer." + std::to_string(layer) + ".";
      Vector qkv = times(normed(s, rounds), name + "qkv");
      round(qkv, rounds);
      const Vector o = times(attention(layer, qkv, rounds), name + "o");
      for (std::size_t i = 0; i < s.size(); ++i) s[i] += o[i];
      const Vector both = times(normed(s, rounds), name + "gate_up");
      Vector h(std::size_t(rows()) * f);
      for (std::size_t i = 0; i < h.size(); ++i) {
        const std::size_t at = i / f * 2 * f + i % f;
        h[i] = bf(silu(both[at]) * both[at + f], rounds);
      }
      const Vector down = times(h, name + "down");
      for (std::size_t i = 0; i < s.size(); ++i) s[i] += down[i];
    }
    Vector h = times(normed(s, rounds), "unembed_first");
    add_bias(h, "unembed_first_bias");
    for (double& one : h) one = bf(std::max(one, 0.0), rounds);
    Vector v = times(h, "unembed_last");
    add_bias(v, "unembed_last_bias");
    return v;
  }

  static double silu(double x) { return x / (1 + std::exp(-x)); }

  // One head of a row of qkv, normed and turned.
  Vector turned(const Vector& qkv, int layer, int row, int head, bool query, bool rounds) const {
    const int d = of("head_dim"), half = d / 2, width = int(qkv.size()) / rows();
    const Vector weight = all("layer." + std::to_string(layer) + (query ? ".q_norm" : ".k_norm"));
    Vector x(std::size_t{unsigned(d)}), y = x;
    double sum = 0;
    for (int i = 0; i < d; ++i) {
      x[std::size_t(i)] = qkv[std::size_t(row * width + head * d + i)];
      sum += x[std::size_t(i)] * x[std::size_t(i)];
    }
    for (int i = 0; i < d; ++i)
      x[std::size_t(i)] *= weight[std::size_t(i)] / std::sqrt(sum / d + n_.at("eps"));
    for (int i = 0; i < half; ++i) {
      const int at = params_.positions[row] * half + i;
      const double a = x[std::size_t(i)], b = x[std::size_t(half + i)];
      y[std::size_t(i)] = bf(a * params_.cos[at] - b * params_.sin[at], rounds);
      y[std::size_t(half + i)] = bf(b * params_.cos[at] + a * params_.sin[at], rounds);
    }
    return y;
  }

  Vector attention(int layer, const Vector& qkv, bool rounds) const {
    const int heads = of("heads"), d = of("head_dim");
    Vector out(std::size_t(rows() * heads * d));
    for (int row = 0; row < rows(); ++row)
      for (int head = 0; head < heads; ++head) attend(layer, qkv, row, head, rounds, out);
    round(out, rounds);
    return out;
  }

  void attend(int layer, const Vector& qkv, int row, int head, bool rounds, Vector& out) const {
    const int heads = of("heads"), groups = of("groups"), d = of("head_dim"), h = of("chunk");
    const int chunk = row / h, group = head / (heads / groups), width = (heads + 2 * groups) * d;
    const int prefix = params_.prefix_index[chunk], begin = params_.cu_prefix[prefix];
    const int before = params_.cu_prefix[prefix + 1] - begin;
    const Vector q = turned(qkv, layer, row, head, true, rounds);
    Vector sum(std::size_t{unsigned(d)});
    double all = 0;
    for (int key = 0; key < std::min(params_.kv_end[row], before + h); ++key) {
      const int own = chunk * h + key - before;
      const std::uint16_t* cached =
          params_.kv + layer * params_.kv_layer + ((begin + key) * groups + group) * d;
      const Vector k =
          key < before ? Vector() : turned(qkv, layer, own, heads + group, false, rounds);
      double score = 0;
      for (int i = 0; i < d; ++i)
        score += q[std::size_t(i)] * (key < before ? wide(cached[i]) : k[std::size_t(i)]);
      const double weight = std::exp(score / std::sqrt(d));
      all += weight;
      for (int i = 0; i < d; ++i) {
        const std::size_t value = std::size_t(own * width + (heads + groups + group) * d + i);
        sum[std::size_t(i)] +=
            weight * (key < before ? wide(cached[params_.kv_values + i]) : qkv[value]);
      }
    }
    for (int i = 0; i < d; ++i)
      out[std::size_t((row * heads + head) * d + i)] = all > 0 ? sum[std::size_t(i)] / all : 0;
  }

  std::mt19937 random_;
  std::map<std::string, double> n_;
  std::map<std::string, Array> arrays_;
  OdeLoopParams params_{};
};

}  // namespace vlakern::tests
