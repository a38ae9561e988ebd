#include "common/error.h"
#include "qkv_prep/qkv_prep.h"

namespace vlakern {
namespace {

constexpr auto kFloats = {DType::kF32, DType::kBF16, DType::kF16};

void need_adjacent(const Dims& dims, const char* name, const Tensor& t) {
  bool empty = false;
  for (int i = 0; i < t.rank; ++i) empty = empty || t.shape[i] == 0;
  const int last = t.rank - 1;
  if (empty || t.shape[last] == 1 || t.stride[last] == 1) return;
  dims.fail(std::string(name) + " must have adjacent elements in a head, got stride " +
            std::to_string(t.stride[last]));
}

QkvMatrix matrix(const Dims& dims, const char* name, const Tensor& t) {
  need_adjacent(dims, name, t);
  return {reinterpret_cast<char*>(t.data), t.stride[0] * dtype_size(t.dtype), t.stride[1]};
}

QkvWeight weight(Dims& dims, const char* name, const std::optional<Tensor>& t) {
  if (!t) return {nullptr, DType::kF32};
  dims.check(name, *t, {"D"}, kFloats);
  need_adjacent(dims, name, *t);
  return {reinterpret_cast<const void*>(t->data), t->dtype};
}

QkvExpert expert(Dims& dims, const QkvExpertTensors& t, const Tensor& q_out, DType in, DType out) {
  dims.check("q", t.q, {"E", "H", "D"}, {in});
  dims.check("k", t.k, {"E", "G", "D"}, {in});
  dims.check("v", t.v, {"E", "G", "D"}, {in});
  dims.check("rows", t.rows, {"E"}, {DType::kI32});
  dims.check("q_out", q_out, {"E", "H", "D"}, {out});
  if (t.q_weight.has_value() != t.k_weight.has_value()) {
    dims.fail("q_weight and k_weight must be given together");
  }
  QkvExpert e{};
  e.q = matrix(dims, "q", t.q);
  e.k = matrix(dims, "k", t.k);
  e.v = matrix(dims, "v", t.v);
  e.q_out = matrix(dims, "q_out", q_out);
  e.rows = reinterpret_cast<const std::int32_t*>(t.rows.data);
  e.rows_stride = t.rows.stride[0];
  e.q_weight = weight(dims, "q_weight", t.q_weight);
  e.k_weight = weight(dims, "k_weight", t.k_weight);
  return e;
}

// Every expert has its own E; H, G and D are the same in all.
void agree(const QkvPrepTensors& t) {
  const QkvExpertTensors& first = t.experts.front();
  for (const QkvExpertTensors& e : t.experts) {
    const bool ranks = e.q.rank == 3 && e.k.rank == 3 && first.q.rank == 3 && first.k.rank == 3;
    if (ranks && e.q.shape[1] == first.q.shape[1] && e.q.shape[2] == first.q.shape[2] &&
        e.k.shape[1] == first.k.shape[1]) {
      continue;
    }
    throw InputError("qkv_prep: every expert must have [E, H, D] queries and [E, G, D] keys");
  }
}

}  // namespace

QkvPrepParams qkv_prep_params(const QkvPrepTensors& t, std::int64_t row_offset, float eps,
                              bool plus_one) {
  if (t.experts.empty() || t.experts.size() != t.q_outs.size()) {
    throw InputError("qkv_prep: needs at least one expert, and an output for each");
  }
  agree(t);
  QkvPrepParams p{};
  p.in = t.experts.front().q.dtype;
  p.out = t.k_out.dtype;
  for (std::size_t i = 0; i < t.experts.size(); ++i) {
    Dims dims("qkv_prep");
    QkvExpert e = expert(dims, t.experts[i], t.q_outs[i], p.in, p.out);
    e.begin = p.tokens;
    e.end = p.tokens = p.tokens + dims["E"];
    p.experts.push_back(e);
  }
  Dims dims("qkv_prep");
  dims.check("q", t.experts.front().q, {"E", "H", "D"}, kFloats);
  dims.check("k", t.experts.front().k, {"E", "G", "D"}, {p.in});
  if (dims["D"] == 0 || dims["D"] % 2 != 0) dims.fail("the head dim must be even and at least 2");
  const std::string half = std::to_string(dims["D"] / 2);
  dims.check("cos", t.cos, {"T", half.c_str()}, {DType::kF32});
  dims.check("sin", t.sin, {"T", half.c_str()}, {DType::kF32});
  dims.check("k_out", t.k_out, {"S", "G", "D"}, kFloats);
  dims.check("v_out", t.v_out, {"S", "G", "D"}, {p.out});
  need_adjacent(dims, "cos", t.cos);
  need_adjacent(dims, "sin", t.sin);
  p.cos = reinterpret_cast<const float*>(t.cos.data);
  p.sin = reinterpret_cast<const float*>(t.sin.data);
  p.cos_stride = t.cos.stride[0];
  p.sin_stride = t.sin.stride[0];
  p.k_out = matrix(dims, "k_out", t.k_out);
  p.v_out = matrix(dims, "v_out", t.v_out);
  p.row_offset = row_offset;
  p.angles = dims["T"];
  p.out_rows = dims["S"];
  p.heads = dims["H"];
  p.groups = dims["G"];
  p.half = dims["D"] / 2;
  p.eps = eps;
  p.plus_one = plus_one;
  return p;
}

void check_permutation(const QkvPrepParams& p) {
  std::vector<bool> seen(static_cast<std::size_t>(p.angles), false);
  if (p.tokens != p.angles) {
    throw InputError("qkv_prep: the experts have " + std::to_string(p.tokens) +
                     " tokens, cos and sin have " + std::to_string(p.angles) + " rows");
  }
  for (const QkvExpert& e : p.experts) {
    for (std::int64_t i = 0; i < e.end - e.begin; ++i) {
      const std::int64_t row = e.rows[i * e.rows_stride];
      if (row >= 0 && row < p.angles && !seen[static_cast<std::size_t>(row)]) {
        seen[static_cast<std::size_t>(row)] = true;
        continue;
      }
      throw InputError("qkv_prep: rows must be a permutation of [0, " + std::to_string(p.angles) +
                       "), got " + std::to_string(row) +
                       (row < 0 || row >= p.angles ? "" : " twice"));
    }
  }
}

QkvPrepGradientParams qkv_prep_gradient_params(const QkvPrepTensors& t,
                                               const std::vector<QkvGradientTensors>& g,
                                               const std::optional<Tensor>& dcos,
                                               const std::optional<Tensor>& dsin, float eps,
                                               bool plus_one) {
  QkvPrepGradientParams p{qkv_prep_params(t, 0, eps, plus_one), {}, nullptr, nullptr};
  check_permutation(p.op);
  if (g.size() != t.experts.size()) throw InputError("qkv_prep_backward: one record per expert");
  for (std::size_t i = 0; i < g.size(); ++i) {
    Dims dims("qkv_prep_backward");
    dims.check("q", t.experts[i].q, {"E", "H", "D"}, {p.op.in});
    dims.check("k", t.experts[i].k, {"E", "G", "D"}, {p.op.in});
    dims.check_output("grad_q", g[i].dq, {"E", "H", "D"}, {p.op.in});
    dims.check_output("grad_k", g[i].dk, {"E", "G", "D"}, {p.op.in});
    dims.check_output("grad_v", g[i].dv, {"E", "G", "D"}, {p.op.in});
    QkvGradient one{matrix(dims, "grad_q", g[i].dq),
                    matrix(dims, "grad_k", g[i].dk),
                    matrix(dims, "grad_v", g[i].dv),
                    nullptr,
                    nullptr,
                    nullptr};
    const bool norms = t.experts[i].q_weight.has_value();
    if (norms != g[i].q_weight.has_value() || norms != g[i].k_weight.has_value()) {
      dims.fail("weights and their gradients must be given together");
    }
    if (norms) {
      const std::string runs = std::to_string(qkv_prep_runs(dims["E"]));
      dims.check_output("grad_q_weight", *g[i].q_weight, {"D"}, {DType::kF32});
      dims.check_output("grad_k_weight", *g[i].k_weight, {"D"}, {DType::kF32});
      dims.check_output("partial", g[i].partial, {runs.c_str(), "2", "D"}, {DType::kF32});
      const std::int64_t width = dims["D"];
      if (g[i].partial.stride[0] != 2 * width || g[i].partial.stride[1] != width) {
        dims.fail("partial must be contiguous");
      }
      one.q_weight = reinterpret_cast<float*>(g[i].q_weight->data);
      one.k_weight = reinterpret_cast<float*>(g[i].k_weight->data);
      one.partial = reinterpret_cast<float*>(g[i].partial.data);
    }
    p.experts.push_back(one);
  }
  if (dcos.has_value() != dsin.has_value()) throw InputError("qkv_prep_backward: cos without sin");
  if (dcos) {
    Dims dims("qkv_prep_backward");
    const std::string rows = std::to_string(p.op.angles), half = std::to_string(p.op.half);
    for (const Tensor* one : {&*dcos, &*dsin}) {
      dims.check("grad_cos and grad_sin", *one, {rows.c_str(), half.c_str()}, {DType::kF32});
      if (one->shape[0] > 1 && one->stride[0] != p.op.half)
        dims.fail("grad_cos must be contiguous");
    }
    p.dcos = reinterpret_cast<float*>(dcos->data);
    p.dsin = reinterpret_cast<float*>(dsin->data);
  }
  return p;
}

std::int64_t qkv_prep_runs(std::int64_t tokens) { return (tokens + kQkvRun - 1) / kQkvRun; }

}  // namespace vlakern
