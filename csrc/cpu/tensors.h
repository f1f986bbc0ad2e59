// Small helpers between tensors and the leaves' rows; scratch memory comes from torch's allocator, so
// that torch's debugging aids (filling fresh memory with NaN) reach it too.
#pragma once

#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../checks.h"
#include "leaves.h"

namespace dla {
namespace cpu {

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

template <class A>
Tensor empty(std::vector<int64_t> shape) {
  return torch::stable::empty(shape, dtype_of<A>());
}

// A contiguous matrix of scratch or result memory.
template <class A>
struct Matrix {
  Tensor tensor;
  Rows<A> rows;

  Matrix() = default;
  Matrix(int64_t M, int64_t N) : tensor(empty<A>({M, N})), rows{static_cast<A*>(tensor.data_ptr()), N} {}
  A* operator[](int64_t m) const { return rows[m]; }
  bool exists() const { return rows.data != nullptr; }
};

template <class A>
const A* read(const Tensor& x) {  // x is contiguous
  return static_cast<const A*>(x.data_ptr());
}
template <class A>
A* write(const Tensor& x) {
  return static_cast<A*>(x.data_ptr());
}

inline Tensors dense(const Tensors& xs) {
  Tensors out;
  for (const Tensor& x : xs) out.push_back(x.is_contiguous() ? x : torch::stable::contiguous(x));
  return out;
}
inline Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

// Calls f with a value of the storage type of dtype.
template <class F>
auto dispatch_maps(ScalarType dtype, F f) {
  switch (dtype) {
    case ScalarType::Float: return f(float());
    case ScalarType::Double: return f(double());
    case ScalarType::BFloat16: return f(BFloat16());
    case ScalarType::Half: return f(Half());
    default:
      STD_TORCH_CHECK(false, "xs: expected fp32, fp64, bf16 or fp16, got ", toString(dtype));
  }
}
// Calls f with a value of the accumulate type of dtype.
template <class F>
auto dispatch_rows(ScalarType dtype, F f) {
  return dtype == ScalarType::Double ? f(double()) : f(float());
}

}  // namespace cpu
}  // namespace dla
