// Small helpers around tensors that every backend needs.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "checks.h"
#include "common.h"

namespace dla {

template <class T>
constexpr ScalarType dtype_of();
template <>
constexpr ScalarType dtype_of<float>() {
  return ScalarType::Float;
}
template <>
constexpr ScalarType dtype_of<double>() {
  return ScalarType::Double;
}

inline std::vector<int64_t> sizes_of(const Tensor& x) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < x.dim(); ++i) sizes.push_back(x.size(i));
  return sizes;
}

inline Tensors as_contiguous(const Tensors& xs) {
  Tensors out;
  for (const Tensor& x : xs) out.push_back(x.is_contiguous() ? x : torch::stable::contiguous(x));
  return out;
}
inline Tensor as_contiguous(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

// Calls f with a value of the storage type of dtype.
template <class F>
auto dispatch_maps(ScalarType dtype, F f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(float());
    case ScalarType::Double:
      return f(double());
    case ScalarType::BFloat16:
      return f(BFloat16());
    case ScalarType::Half:
      return f(Half());
    default:
      STD_TORCH_CHECK(false, "xs: expected fp32, fp64, bf16 or fp16, got ", toString(dtype));
  }
}
// Calls f with a value of the accumulate type of dtype.
template <class F>
auto dispatch_rows(ScalarType dtype, F f) {
  return dtype == ScalarType::Double ? f(double()) : f(float());
}

}  // namespace dla
