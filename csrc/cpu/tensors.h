// Small helpers between tensors and the microkernels' rows.
#pragma once

#include <algorithm>
#include <vector>

#include "../tensors.h"
#include "microkernels.h"
#include "scratch.h"

namespace dla {
namespace cpu {

template <class A>
Tensor empty(std::vector<int64_t> shape) {
  return torch::stable::empty(shape, dtype_of<A>());
}

// A contiguous result of the op, as rows of its last dimension.
template <class A>
Rows<A> rows_of(const Tensor& x) {
  return {static_cast<A*>(x.data_ptr()), x.size(x.dim() - 1)};
}

// A call into torch each: not for inner loops.
template <class A>
const A* read(const Tensor& x) {  // x is contiguous
  return static_cast<const A*>(x.data_ptr());
}
template <class A>
A* write(const Tensor& x) {
  return static_cast<A*>(x.data_ptr());
}

// to += from, one by one
template <class A>
void add_to(const Tensors& to, const Tensors& from) {
  for (size_t i = 0; i < to.size(); ++i) {
    A* sum = write<A>(to[i]);
    const A* more = read<A>(from[i]);
    for (int64_t j = 0, n = to[i].numel(); j < n; ++j) sum[j] += more[j];
  }
}

}  // namespace cpu
}  // namespace dla
