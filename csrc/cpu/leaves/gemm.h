// The two matrix products of the library, in which every vector runs along channels:
//   dots:  out[m, n] = init[m, n] + sum_k x[m, k] w[n, k]     k is a channel axis
//   axpys: out[m, n] = init[m, n] + sum_k x[m, k] w[k, n]     n is a channel axis
// The bottleneck axis R is therefore never a vector axis, however small or odd it is.
// Each output element is summed in one fixed order, whatever M and whichever tile it falls in: a
// sample's result does not depend on its neighbours.
#pragma once

#include "../leaves.h"
#include "simd.h"

namespace dla {
namespace cpu {
namespace DLA_ISA {

template <int kM, int kN, class A>
DLA_HOST_DEVICE void dots_tile(int64_t K, Rows<const A> x, Rows<const A> w, Rows<const A> init,
                               Rows<A> out) {
  using V = Vec<A>;
  V sum[kM][kN];
  for (int m = 0; m < kM; ++m)
    for (int n = 0; n < kN; ++n) sum[m][n] = A(0);
  const auto step = [&](auto read) __attribute__((always_inline)) {
    V xs[kM];
    for (int m = 0; m < kM; ++m) xs[m] = read(x[m]);
    for (int n = 0; n < kN; ++n) {
      const V ws = read(w[n]);
      for (int m = 0; m < kM; ++m) sum[m][n] += xs[m] * ws;
    }
  };
  int64_t k = 0;
  for (; k + V::kLanes <= K; k += V::kLanes) step([k](const A* p) { return load(p + k); });
  if (const int rest = int(K - k)) step([k, rest](const A* p) { return load_n(p + k, rest); });
  for (int m = 0; m < kM; ++m)
    for (int n = 0; n < kN; ++n)
      out[m][n] = (init.data ? init[m][n] : A(0)) + lane_sum(sum[m][n]);
}

template <int kM, class A>
DLA_HOST_DEVICE void dots_rows(int64_t N, int64_t K, Rows<const A> x, Rows<const A> w,
                               Rows<const A> init, Rows<A> out) {
  constexpr int kN = kM == 1 ? 8 : 4;
  int64_t n = 0;
  for (; n + kN <= N; n += kN)
    dots_tile<kM, kN>(K, x, w.from(n), init.data ? init.right(n) : init, out.right(n));
  for (; n < N; ++n)
    dots_tile<kM, 1>(K, x, w.from(n), init.data ? init.right(n) : init, out.right(n));
}

// x [M, K], w [N, K], init [M, N] or none, out [M, N]
template <class A>
void dots(int64_t M, int64_t N, int64_t K, Rows<const A> x, Rows<const A> w, Rows<const A> init,
          Rows<A> out) {
  int64_t m = 0;
  for (; m + 4 <= M; m += 4)
    dots_rows<4>(N, K, x.from(m), w, init.data ? init.from(m) : init, out.from(m));
  for (; m < M; ++m)
    dots_rows<1>(N, K, x.from(m), w, init.data ? init.from(m) : init, out.from(m));
}

// kM rows by kV vectors of outputs; the last vector holds `rest` lanes where rest > 0.
template <int kM, int kV, class A>
DLA_HOST_DEVICE void axpys_tile(int64_t K, int rest, const A* x, int64_t x_row, int64_t x_col,
                                Rows<const A> w, Rows<const A> init, Rows<A> out) {
  using V = Vec<A>;
  V sum[kM][kV];
  for (int m = 0; m < kM; ++m)
    for (int v = 0; v < kV; ++v) sum[m][v] = A(0);
  const auto read = [rest](const A* p) { return kV == 1 && rest ? load_n(p, rest) : load(p); };
  for (int64_t k = 0; k < K; ++k) {
    V ws[kV];
    for (int v = 0; v < kV; ++v) ws[v] = read(w[k] + v * V::kLanes);
    for (int m = 0; m < kM; ++m) {
      const V xs = x[m * x_row + k * x_col];
      for (int v = 0; v < kV; ++v) sum[m][v] += xs * ws[v];
    }
  }
  for (int m = 0; m < kM; ++m)
    for (int v = 0; v < kV; ++v) {
      const int64_t n = v * V::kLanes;
      const V total = init.data ? read(init[m] + n) + sum[m][v] : sum[m][v];
      kV == 1 && rest ? store_n(out[m] + n, total, rest) : store(out[m] + n, total);
    }
}

template <int kM, class A>
DLA_HOST_DEVICE void axpys_rows(int64_t N, int64_t K, const A* x, int64_t x_row, int64_t x_col,
                                Rows<const A> w, Rows<const A> init, Rows<A> out) {
  constexpr int kLanes = Vec<A>::kLanes, kV = DLA_VECTOR_BYTES == 64 ? 4 : 2;
  const auto right = [&](int64_t n) { return init.data ? init.right(n) : init; };
  int64_t n = 0;
  for (; n + kV * kLanes <= N; n += kV * kLanes)
    axpys_tile<kM, kV>(K, 0, x, x_row, x_col, w.right(n), right(n), out.right(n));
  for (; n < N; n += kLanes) {
    const int rest = n + kLanes <= N ? 0 : int(N - n);
    axpys_tile<kM, 1>(K, rest, x, x_row, x_col, w.right(n), right(n), out.right(n));
  }
}

// x [M, K] with any strides (so also a transpose), w [K, N], init [M, N] or none, out [M, N]
template <class A>
void axpys(int64_t M, int64_t N, int64_t K, const A* x, int64_t x_row, int64_t x_col,
           Rows<const A> w, Rows<const A> init, Rows<A> out) {
  int64_t m = 0;
  for (; m + 4 <= M; m += 4)
    axpys_rows<4>(N, K, x + m * x_row, x_row, x_col, w, init.data ? init.from(m) : init, out.from(m));
  for (; m < M; ++m)
    axpys_rows<1>(N, K, x + m * x_row, x_row, x_col, w, init.data ? init.from(m) : init, out.from(m));
}

}  // namespace DLA_ISA
}  // namespace cpu
}  // namespace dla
