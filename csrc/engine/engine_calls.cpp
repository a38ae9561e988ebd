#include "engine/engine_calls.h"

#include "norm/norm.h"

namespace vlakern {
namespace {

NormMatrix norm_matrix(const Rows& rows) {
  return {static_cast<char*>(rows.data), rows.stride * dtype_size(rows.dtype), rows.dtype};
}

QkvMatrix qkv_matrix(const Rows& rows, std::int64_t width) {
  return {static_cast<char*>(rows.data), rows.stride * dtype_size(rows.dtype), width};
}

}  // namespace

void Calls::linear(const Matrix& w, std::int64_t m, const Rows& x, const Rows& out,
                   bool add) const {
  linear(w, m, x, out, add ? out : Rows{nullptr, 0, out.dtype});
}

void Calls::linear(const Matrix& w, std::int64_t m, const Rows& x, const Rows& out,
                   const Rows& residual) const {
  LinearParams p = w;
  p.m = m;
  p.x = x.data;
  p.x_stride = x.stride;
  p.x_dtype = x.dtype;
  p.out = out.data;
  p.out_stride = out.stride;
  p.out_dtype = out.dtype;
  p.residual = residual.data;
  p.residual_stride = residual.stride;
  p.workspace = workspace_;
  linear_cpu(p);
}

void Calls::norm(NormKind kind, std::int64_t m, std::int64_t width, float eps, const Rows& x,
                 const Rows& y, const float* weight) const {
  NormParams p{};
  p.x = norm_matrix(x);
  p.y = norm_matrix(y);
  p.weight = {reinterpret_cast<char*>(const_cast<float*>(weight)), 0, DType::kF32};
  p.rows = m;
  p.width = width;
  p.groups = 1;
  p.kind = kind;
  p.eps = eps;
  norm_cpu(p, isa_, threads_);
}

void Calls::norm(const Adaptive& a, std::int64_t m, std::int64_t width, float eps, const Rows& x,
                 const Rows& y) const {
  const auto vectors = [&](const float* first) {
    char* data = reinterpret_cast<char*>(const_cast<float*>(first));
    return NormMatrix{data, a.step * static_cast<std::int64_t>(sizeof(float)), DType::kF32};
  };
  NormParams p{};
  p.x = norm_matrix(x);
  p.y = norm_matrix(y);
  p.scale = vectors(a.scale);
  p.shift = vectors(a.scale + width);
  if (a.gate != nullptr) {
    p.gate = vectors(a.gate);
    p.residual = norm_matrix(rows_of(const_cast<float*>(a.added), width));
    p.h = p.x;
  }
  p.row_group = a.group;
  p.row_group_stride = 1;
  p.rows = m;
  p.width = width;
  p.groups = a.group == nullptr ? 1 : 2;
  p.kind = NormKind::kRms;
  p.eps = eps;
  norm_cpu(p, isa_, threads_);
}

void mlp_half(const Calls& calls, const ExpertLayer& layer, std::int64_t m, float eps,
              const Rows& x, const Rows& normed, const Rows& hidden) {
  calls.norm(NormKind::kRms, m, layer.gate_up->k, eps, x, normed, layer.post_norm);
  calls.linear(*layer.gate_up, m, normed, hidden);
  calls.linear(*layer.down, m, hidden, x, true);
}

void qkv_half(const Calls& calls, const ExpertLayer& layer, const ModelSizes& s, std::int64_t m,
              bool kv_only, const Rows& x, const Rows& normed, const Rows& qkv) {
  const Matrix& w = kv_only ? *layer.kv : layer.qkv;
  calls.norm(NormKind::kRms, m, w.k, s.eps, x, normed, layer.input_norm);
  calls.linear(w, m, normed, kv_only ? qkv.columns(s.q_width()) : qkv);
}

QkvExpert qkv_expert(const ExpertLayer& layer, const ModelSizes& s, const Rows& qkv,
                     const Rows& q_out, const std::int32_t* rows, std::int64_t begin,
                     std::int64_t count) {
  QkvExpert e{};
  e.q = qkv_matrix(qkv, s.head_dim);
  e.k = qkv_matrix(qkv.columns(s.q_width()), s.head_dim);
  e.v = qkv_matrix(qkv.columns(s.q_width() + s.kv_width()), s.head_dim);
  e.q_out = qkv_matrix(q_out, s.head_dim);
  e.rows = rows;
  e.rows_stride = 1;
  e.q_weight = layer.q_norm;
  e.k_weight = layer.k_norm;
  e.begin = begin;
  e.end = begin + count;
  return e;
}

}  // namespace vlakern
