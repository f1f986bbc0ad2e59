// Products of rows with weights. Threads share the work in one of two ways. Usually each takes blocks of samples, and
// all that follows runs inside one thread. Where the weights outgrow a core's cache products are *wide*: one block
// holds the whole batch, and each product and pointwise rule is cut by columns, so that a thread keeps its own part of
// the weights in cache through all layers. Results are the same bits.
#pragma once

#include "tensors.h"
#include "threads.h"

namespace dla {
namespace cpu {

template <class A>
void relu_(int64_t n, A* x) {  // NaN passes
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] < A(0) ? A(0) : x[i];
}
// Gradients in front of a relu whose results are u [M, N].
template <class A>
void mask(int64_t M, int64_t N, Rows<const A> u, Rows<A> du) {
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) du[m][n] = u[m][n] <= A(0) ? A(0) : du[m][n];
}

template <class A>
class Products {
 public:
  const bool wide;

  explicit Products(int64_t weight_bytes) : wide(num_threads() > 1 && weight_bytes > cache_bytes()) {}

  // f(begin, end) over columns 0 .. n, cut at multiples of `piece`.
  template <class F>
  void columns(int64_t n, F f, int64_t piece = 16) const {
    if (!wide) return f(0, n);
    parallel_for((n + piece - 1) / piece,
                 [&](int64_t begin, int64_t end) { f(begin * piece, std::min(n, end * piece)); });
  }
  // out [M, n] = x [M, K] weight^T + init, weight [n, K]
  void dots(int64_t M, int64_t n, int64_t K, Rows<const A> x, Rows<const A> weight, Rows<const A> init,
            Rows<A> out) const {
    const auto some = [&](int64_t i, int64_t end) {
      kernels_.dots(M, end - i, K, x, weight.from(i), init.data ? init.right(i) : init, out.right(i));
    };
    columns(n, some, /*piece=*/4);
  }
  // out [M, n] = x [M, K] weight, weight [K, n]
  void axpys(int64_t M, int64_t n, int64_t K, Rows<const A> x, Rows<const A> weight, Rows<A> out) const {
    columns(n, [&](int64_t i, int64_t end) {
      kernels_.axpys(M, end - i, K, x.data, x.ld, 1, weight.right(i), {}, out.right(i));
    });
  }
  const RowKernels<A>& kernels() const { return kernels_; }

 private:
  const RowKernels<A>& kernels_ = row_kernels<A>();
};

}  // namespace cpu
}  // namespace dla
