// Matrix products of one block: a few rows x with weights that are read once for up to kRows of them.
// Every sum is taken in an order that depends on the widths alone, not on how many rows there are.
#pragma once

#include "device.h"

namespace dla {
namespace cuda {

constexpr int kRows = 4;

// Rows of weights. Those of gates are n = g * segment + c, in memory `next` elements apart from gate to gate.
// side_by_side: at least so many threads should read one row together; 1 in shared memory, where a thread may as
// well have a row of its own.
template <class A>
struct WeightRows {
  const A* data;
  int64_t ld;
  int segment;
  int64_t next;
  int side_by_side = 8;

  DLA_DEVICE const A* operator()(int n) const {
    if (next == 0) return data + n * ld;  // one segment: no division
    return data + (n / segment) * next + (n % segment) * ld;
  }
};

// Four floats or two doubles.
template <class A>
struct Quad {
  static constexpr int N = 16 / sizeof(A);
  union {
    Words4 words;
    A v[N];
  };
};
template <class A>
DLA_DEVICE Quad<A> load_quad(const A* p) {
  Quad<A> q;
  q.words = *reinterpret_cast<const Words4*>(p);
  return q;
}
template <class A>
DLA_DEVICE bool in_quads(const A* p, int64_t ld) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && ld % Quad<A>::N == 0;
}

template <class A, int M_TILE, int V, class F>
DLA_DEVICE void dots_of(int M, int N, int K, const A* x, int ldx, const WeightRows<A>& w, F f) {
  // As many threads to a row as there are, so that all rows are done at once; sums over few threads are quick.
  const int idle = num_threads() / (N > 0 ? N : 1), most = power_of_two((K + V - 1) / V, kWarp);
  int lanes = w.side_by_side;
  while (lanes * 2 <= idle) lanes *= 2;
  lanes = at_most(lanes, most);
  const int lane = thread_index() % lanes, group = thread_index() / lanes, groups = num_threads() / lanes;
  for (int n0 = 0; n0 < N; n0 += groups) {  // all threads take every turn: the shuffles need them
    const int n = at_most(n0 + group, N - 1);
    const A* row = w(n);
    for (int m0 = 0; m0 < M; m0 += M_TILE) {
      A sum[M_TILE] = {};
      for (int k = lane * V; k < K; k += lanes * V) {
        if constexpr (V == 1) {
          const A weight = row[k];
#pragma unroll
          for (int i = 0; i < M_TILE; ++i) sum[i] = fma(x[at_most(m0 + i, M - 1) * ldx + k], weight, sum[i]);
        } else {
          const Quad<A> weight = load_quad(row + k);
#pragma unroll
          for (int i = 0; i < M_TILE; ++i) {
            const Quad<A> value = load_quad(x + at_most(m0 + i, M - 1) * ldx + k);
#pragma unroll
            for (int j = 0; j < V; ++j) sum[i] = fma(value.v[j], weight.v[j], sum[i]);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < M_TILE; ++i) {
        const A total = sum_lanes(sum[i], lanes);
        if (lane == 0 && n0 + group < N && m0 + i < M) f(m0 + i, n, total);
      }
    }
  }
}

// f(m, n, sum over k of x[m][k] * w(n)[k]) for every m < M and n < N, by one thread each.
template <class A, class F>
DLA_DEVICE void dots(int M, int N, int K, const A* x, int ldx, const WeightRows<A>& w, F f) {
  constexpr int V = Quad<A>::N;
  const bool wide = K % V == 0 && in_quads(x, ldx) && in_quads(w.data, w.ld) && w.next % V == 0;
  if (!wide)  // odd sizes: right, but not fast
    dots_of<A, 1, 1>(M, N, K, x, ldx, w, f);
  else if (M == 1)
    dots_of<A, 1, V>(M, N, K, x, ldx, w, f);
  else
    dots_of<A, kRows, V>(M, N, K, x, ldx, w, f);
}

template <class A, int M_TILE, class F>
DLA_DEVICE void axpys_of(int M, int N, int K, const A* x, int ldx, const WeightRows<A>& w, A* scratch, F f) {
  const int columns = power_of_two(N, num_threads());
  const int column = thread_index() % columns, part = thread_index() / columns, parts = num_threads() / columns;
  for (int n0 = 0; n0 < N; n0 += columns) {
    const int n = n0 + column;
    for (int m0 = 0; m0 < M; m0 += M_TILE) {
      A sum[M_TILE] = {};
      if (n < N)
        for (int k = part; k < K; k += parts) {
          const A weight = w(k)[n];
#pragma unroll
          for (int i = 0; i < M_TILE; ++i) sum[i] = fma(x[at_most(m0 + i, M - 1) * ldx + k], weight, sum[i]);
        }
      if (parts > 1) {  // the parts of a sum meet in scratch, in order
#pragma unroll
        for (int i = 0; i < M_TILE; ++i) scratch[i * num_threads() + thread_index()] = sum[i];
        block_barrier();
        if (part == 0)
#pragma unroll
          for (int i = 0; i < M_TILE; ++i) {
            sum[i] = A(0);
            for (int p = 0; p < parts; ++p) sum[i] += scratch[i * num_threads() + p * columns + column];
          }
        block_barrier();
      }
      if (part == 0 && n < N)
#pragma unroll
        for (int i = 0; i < M_TILE; ++i)
          if (m0 + i < M) f(m0 + i, n, sum[i]);
    }
  }
}

// f(m, n, sum over k of x[m][k] * w(k)[n]): the transposed product. scratch: kRows values per thread.
template <class A, class F>
DLA_DEVICE void axpys(int M, int N, int K, const A* x, int ldx, const WeightRows<A>& w, A* scratch, F f) {
  M == 1 ? axpys_of<A, 1>(M, N, K, x, ldx, w, scratch, f) : axpys_of<A, kRows>(M, N, K, x, ldx, w, scratch, f);
}

}  // namespace cuda
}  // namespace dla
