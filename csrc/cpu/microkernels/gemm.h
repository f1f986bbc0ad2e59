// The two matrix products of the library. Weights are used as they are stored, nothing is packed:
//   dots:  out[m, n] = init[m, n] + sum_k x[m, k] w[n, k]     where the summed axis is contiguous
//   axpys: out[m, n] = init[m, n] + sum_k x[m, k] w[k, n]     where the output axis is
// Each output element is summed in one fixed order, whatever M and whichever tile it falls in: a
// sample's result does not depend on its neighbours.
#pragma once

#include "../microkernels.h"
#include "simd.h"

namespace dla {
namespace cpu {
namespace DLA_ISA {

// Rows of x and out, with the rows of init where there are any.
template <class A>
struct Operands {
  const A* x;
  int64_t x_row, x_col;  // distance between rows, between columns
  Rows<const A> init;
  Rows<A> out;

  DLA_HOST_DEVICE Operands from(int64_t m) const {
    return {x + m * x_row, x_row, x_col, init.data ? init.from(m) : init, out.from(m)};
  }
  DLA_HOST_DEVICE Operands right(int64_t n) const {  // x is shared by all columns
    return {x, x_row, x_col, init.data ? init.right(n) : init, out.right(n)};
  }
};

// Calls f(height, operands) for each tile of rows; its height, at most kTallest, is a compile-time
// constant. Narrow tiles should be tall: it takes some eight sums side by side to hide an addition's
// latency.
template <int kTallest, class A, class F>
DLA_HOST_DEVICE void for_row_tiles(int64_t M, Operands<A> ops, F f) {
  int64_t m = 0;
  if (kTallest == 8)
    for (; m + 8 <= M; m += 8) f(Constant<kTallest>(), ops.from(m));
  for (; m + 4 <= M; m += 4) f(Constant<4>(), ops.from(m));
  if (M - m == 3) f(Constant<3>(), ops.from(m));
  if (M - m == 2) f(Constant<2>(), ops.from(m));
  if (M - m == 1) f(Constant<1>(), ops.from(m));
}

// kM rows by kN columns; kN is 1 or a multiple of 4.
template <int kM, int kN, class A>
DLA_HOST_DEVICE void dots_tile(int64_t K, Rows<const A> w, Operands<A> ops) {
  using V = Vec<A>;
  V sum[kM][kN];
  for (int m = 0; m < kM; ++m)
    for (int n = 0; n < kN; ++n) sum[m][n] = A(0);
  const auto step = [&](auto read) __attribute__((always_inline)) {
    V xs[kM];
    for (int m = 0; m < kM; ++m) xs[m] = read(ops.x + m * ops.x_row);
    for (int n = 0; n < kN; ++n) {
      const V ws = read(w[n]);
      for (int m = 0; m < kM; ++m) sum[m][n] = multiply_add(xs[m], ws, sum[m][n]);
    }
  };
  int64_t k = 0;
  for (; k + V::kLanes <= K; k += V::kLanes) step([k](const A* p) { return load(p + k); });
  if (const int rest = int(K - k)) step([k, rest](const A* p) { return load_n(p + k, rest); });
  for (int m = 0; m < kM; ++m) {
    A sums[kN];
    if (kN == 1)
      sums[0] = lane_sum(sum[m][0]);
    else
      for (int n = 0; n + 4 <= kN; n += 4) lane_sum4(&sum[m][n], sums + n);
    for (int n = 0; n < kN; ++n) ops.out[m][n] = ops.init.data ? ops.init[m][n] + sums[n] : sums[n];
  }
}

// x [M, K], w [N, K], init [M, N] or none, out [M, N]
template <class A>
void dots(int64_t M, int64_t N, int64_t K, Rows<const A> x, Rows<const A> w, Rows<const A> init, Rows<A> out) {
  const auto tile = [&](auto width, int64_t n) __attribute__((always_inline)) {
    const auto rows = [&](auto height, Operands<A> ops) __attribute__((always_inline)) {
      dots_tile<decltype(height)::value, decltype(width)::value>(K, w.from(n), ops);
    };
    for_row_tiles<4>(M, Operands<A>{x.data, x.ld, 1, init, out}.right(n), rows);
  };
  // Columns outside, rows inside: a few rows of w serve all rows of x from cache.
  int64_t n = 0;
  if (M == 1)
    for (; n + 8 <= N; n += 8) tile(Constant<8>(), n);
  for (; n + 4 <= N; n += 4) tile(Constant<4>(), n);
  for (; n < N; ++n) tile(Constant<1>(), n);
}

// kM rows by kV vectors of outputs; rest > 0: the last vector holds that many lanes.
template <int kM, int kV, class A>
DLA_HOST_DEVICE void axpys_tile(int64_t K, int rest, Rows<const A> w, Operands<A> ops) {
  using V = Vec<A>;
  V sum[kM][kV];
  for (int m = 0; m < kM; ++m)
    for (int v = 0; v < kV; ++v) sum[m][v] = A(0);
  const auto read = [rest](const A* p, int v) __attribute__((always_inline)) {
    return v == kV - 1 && rest ? load_n(p + v * V::kLanes, rest) : load(p + v * V::kLanes);
  };
  for (int64_t k = 0; k < K; ++k) {
    V ws[kV];
    for (int v = 0; v < kV; ++v) ws[v] = read(w[k], v);
    for (int m = 0; m < kM; ++m) {
      const V xs = ops.x[m * ops.x_row + k * ops.x_col];
      for (int v = 0; v < kV; ++v) sum[m][v] = multiply_add(xs, ws[v], sum[m][v]);
    }
  }
  for (int m = 0; m < kM; ++m)
    for (int v = 0; v < kV; ++v) {
      A* to = ops.out[m] + v * V::kLanes;
      const V total = ops.init.data ? read(ops.init[m], v) + sum[m][v] : sum[m][v];
      v == kV - 1 && rest ? store_n(to, total, rest) : store(to, total);
    }
}

// x [M, K] with any strides (so also a transpose), w [K, N], init [M, N] or none, out [M, N]
template <class A>
void axpys(int64_t M, int64_t N, int64_t K, const A* x, int64_t x_row, int64_t x_col, Rows<const A> w,
           Rows<const A> init, Rows<A> out) {
  constexpr int kLanes = Vec<A>::kLanes, kV = DLA_VECTOR_BYTES == 64 ? 4 : 2;
  for (int64_t n = 0; n < N; n += kV * kLanes) {
    const int width = int(N - n < kV * kLanes ? N - n : kV * kLanes);
    const int vectors = (width + kLanes - 1) / kLanes, rest = width % kLanes;
    const auto tile = [&](auto count) __attribute__((always_inline)) {
      const auto rows = [&](auto height, Operands<A> ops) __attribute__((always_inline)) {
        axpys_tile<decltype(height)::value, decltype(count)::value>(K, rest, w.right(n), ops);
      };
      for_row_tiles<decltype(count)::value <= 2 ? 8 : 4>(M, Operands<A>{x, x_row, x_col, init, out}.right(n), rows);
    };
    if (vectors == 1)
      tile(Constant<1>());
    else if (vectors == 2)
      tile(Constant<2>());
    else if (kV == 4 && vectors == 3)
      tile(Constant<kV == 4 ? 3 : 1>());
    else
      tile(Constant<kV>());
  }
}

// panel [R, kPanel] = w [n, R]^T, four rows of w at a time so that their cache lines are used up.
template <class A>
void pack(int64_t n, int64_t R, Rows<const A> w, Rows<A> panel) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    int64_t r = 0;
#if defined(__SSE2__)
    if (sizeof(A) == 4)
      for (; r + 4 <= R; r += 4) {
        __m128 a = _mm_loadu_ps((const float*)w[i] + r), b = _mm_loadu_ps((const float*)w[i + 1] + r);
        __m128 c = _mm_loadu_ps((const float*)w[i + 2] + r), d = _mm_loadu_ps((const float*)w[i + 3] + r);
        _MM_TRANSPOSE4_PS(a, b, c, d);
        _mm_storeu_ps((float*)panel[r] + i, a), _mm_storeu_ps((float*)panel[r + 1] + i, b);
        _mm_storeu_ps((float*)panel[r + 2] + i, c), _mm_storeu_ps((float*)panel[r + 3] + i, d);
      }
#endif
    for (; r < R; ++r)
      for (int64_t j = i; j < i + 4; ++j) panel[r][j] = w[j][r];
  }
  for (; i < n; ++i)
    for (int64_t r = 0; r < R; ++r) panel[r][i] = w[i][r];
}

}  // namespace DLA_ISA
}  // namespace cpu
}  // namespace dla
