// The Python face of shared_attention.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include "common/tensor_caster.h"
#include "shared_attention/shared_attention.h"

namespace vlakern::python {

using OptionalTensor = std::optional<Tensor>;

inline void shared_attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v,
                                 const Tensor& cu_q, const Tensor& cu_k, const Tensor& kv_end,
                                 const OptionalTensor& cu_prefix,
                                 const OptionalTensor& prefix_index, const OptionalTensor& prefix_k,
                                 const OptionalTensor& prefix_v, const OptionalTensor& rows,
                                 const OptionalTensor& packed, const Tensor& out, const Tensor& lse,
                                 float scale, const std::string& isa, int threads) {
  vlakern::shared_attention_cpu({q, k, v, cu_q, cu_k, kv_end, cu_prefix, prefix_index, prefix_k,
                                 prefix_v, rows, packed, out, lse},
                                scale, isa, threads);
}

inline void shared_attention_backward_cpu(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu_k,
    const Tensor& kv_end, const OptionalTensor& cu_prefix, const OptionalTensor& prefix_index,
    const OptionalTensor& prefix_k, const OptionalTensor& prefix_v, const OptionalTensor& rows,
    const Tensor& out, const Tensor& lse, const Tensor& grad_out, const OptionalTensor& grad_lse,
    const Tensor& grad_q, const Tensor& grad_k, const Tensor& grad_v,
    const OptionalTensor& grad_prefix_k, const OptionalTensor& grad_prefix_v, float scale,
    const std::string& isa, int threads) {
  vlakern::shared_attention_backward_cpu(
      {q,
       k,
       v,
       cu_q,
       cu_k,
       kv_end,
       cu_prefix,
       prefix_index,
       prefix_k,
       prefix_v,
       rows,
       {},
       out,
       lse},
      {grad_out, grad_lse, grad_q, grad_k, grad_v, grad_prefix_k, grad_prefix_v}, scale, isa,
      threads);
}

}  // namespace vlakern::python
