// Matrix products of one block: a few rows x with weights that are read once for up to kRows of them.
// Every sum is taken in an order that depends on the widths alone, not on how many rows there are.
#pragma once

#include <type_traits>

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
    if (next == 0) return data + n * ld;
    const int g = Divisor(segment).under(n);
    return data + g * next + (n - g * segment) * ld;
  }
};

// N neighbours, read by one access: a quad of four floats or two doubles, or one alone.
template <class A, int N>
struct Neighbours {
  union {
    Words4 words;
    A v[N];
  };
  DLA_DEVICE void load(const A* p) {
    if constexpr (N * sizeof(A) == 16)
      words = *as_words4(p);
    else
      v[0] = *p;
  }
  DLA_DEVICE void store(A* p) const {
    if constexpr (N * sizeof(A) == 16)
      *as_words4(p) = words;
    else
      *p = v[0];
  }
};
template <class A>
constexpr int kQuad = 16 / sizeof(A);
template <class A>
DLA_DEVICE bool in_quads(const A* p, int64_t ld) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && ld % kQuad<A> == 0;
}

// A thread takes kTurns rows of weights at a time, of each the next kDeep pieces: all are asked for before the first is
// used, since a second-level cache takes hundreds of cycles to answer.
constexpr int kTurns = 2;
template <class A, int M_TILE, int V, int kDeep, class F>
DLA_DEVICE void dots_of(int M, int N, int K, const A* x, int ldx, const WeightRows<A>& w, F f) {
  // As many threads to a row as there are, so that all rows are done in one turn; sums over few threads are quick.
  if (N == 0) return;
  N = not_before(N), K = not_before(K);
  const int idle = floor_log2(num_threads() * kTurns) - ceil_log2(N), fewest = floor_log2(w.side_by_side);
  const int log_lanes = at_most(idle > fewest ? idle : fewest, at_most(ceil_log2((K + V - 1) / V), floor_log2(kWarp)));
  const int lanes = 1 << log_lanes, lane = thread_index() & (lanes - 1), group = thread_index() >> log_lanes;
  const int groups = num_threads() >> log_lanes, step = lanes * V;
  for (int n0 = 0; n0 < N; n0 += groups * kTurns) {  // all threads take every turn: the shuffles need them
    const A* row[kTurns];
#pragma unroll
    for (int j = 0; j < kTurns; ++j) row[j] = w(at_most(n0 + j * groups + group, N - 1)) + lane * V;
    for (int m0 = 0; m0 < M; m0 += M_TILE) {
      int of[M_TILE];
#pragma unroll
      for (int i = 0; i < M_TILE; ++i) of[i] = at_most(m0 + i, M - 1) * ldx + lane * V;
      A sum[kTurns][M_TILE] = {};
      const auto add = [&](int k, auto deep) {
        constexpr int D = decltype(deep)::value;
        Neighbours<A, V> weight[kTurns][D];
#pragma unroll
        for (int j = 0; j < kTurns; ++j)
#pragma unroll
          for (int d = 0; d < D; ++d) weight[j][d].load(row[j] + k + d * step);
#pragma unroll
        for (int d = 0; d < D; ++d)
#pragma unroll
          for (int i = 0; i < M_TILE; ++i) {
            Neighbours<A, V> value;
            value.load(x + (of[i] + k + d * step));
#pragma unroll
            for (int j = 0; j < kTurns; ++j)
#pragma unroll
              for (int v = 0; v < V; ++v) sum[j][i] = fma(value.v[v], weight[j][d].v[v], sum[j][i]);
          }
      };
      int k = 0;
      const int whole = K - (kDeep - 1) * step - lane * V;  // from here on some of the next kDeep pieces are missing
      for (; k < whole; k += kDeep * step) add(k, std::integral_constant<int, kDeep>{});
      if (kDeep > 1)
        for (; k < K - lane * V; k += step) add(k, std::integral_constant<int, 1>{});
#pragma unroll
      for (int j = 0; j < kTurns; ++j)
#pragma unroll
        for (int i = 0; i < M_TILE; ++i) {
          const A total = sum_lanes(sum[j][i], lanes);
          const int n = n0 + j * groups + group;
          if (lane == 0 && n < N && m0 + i < M) f(m0 + i, n, total);
        }
    }
  }
}

// f(m, n, sum over k of x[m][k] * w(n)[k]) for every m < M and n < N, by one thread each.
template <class A, class F>
DLA_DEVICE void dots(int M, int N, int K, const A* x, int ldx, const WeightRows<A>& w, F f) {
  constexpr int V = kQuad<A>;
  const bool wide = K % V == 0 && in_quads(x, ldx) && in_quads(w.data, w.ld) && w.next % V == 0;
  if (!wide)  // odd sizes: right, but not fast
    dots_of<A, 1, 1, 1>(M, N, K, x, ldx, w, f);
  else if (M <= kRows / 2)
    dots_of<A, 1, V, 2>(M, N, K, x, ldx, w, f);
  else
    dots_of<A, kRows, V, 1>(M, N, K, x, ldx, w, f);
}

// Barriers: as axpys.
template <class A, int M_TILE, class F>
DLA_DEVICE void axpys_of(int M, int N, int K, const A* x, int ldx, const WeightRows<A>& w, A* scratch, F f) {
  constexpr int kAhead = 4;  // rows of weights in flight
  if (N == 0) return;
  N = not_before(N), K = not_before(K);
  const int log_columns = at_most(ceil_log2(N), floor_log2(num_threads())), columns = 1 << log_columns;
  const int column = thread_index() & (columns - 1), part = thread_index() >> log_columns;
  const int parts = num_threads() >> log_columns;
  for (int n0 = 0; n0 < N; n0 += columns) {
    const int n = n0 + column;
    for (int m0 = 0; m0 < M; m0 += M_TILE) {
      A sum[M_TILE] = {};
      if (n < N && part < parts)
        for (int k0 = part; k0 < K; k0 += parts * kAhead) {
          A weight[kAhead];
#pragma unroll
          for (int j = 0; j < kAhead; ++j) weight[j] = w(at_most(k0 + j * parts, K - 1))[n];
#pragma unroll
          for (int j = 0; j < kAhead; ++j) {
            const int k = k0 + j * parts;
            if (k < K)
#pragma unroll
              for (int i = 0; i < M_TILE; ++i) sum[i] = fma(x[at_most(m0 + i, M - 1) * ldx + k], weight[j], sum[i]);
          }
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

// f(m, n, sum over k of x[m][k] * w(k)[n]): the transposed product. scratch: kRows values per thread. Barriers: x is
// known when it is called, and scratch free, as it is again on return; what f wrote last is not yet known.
template <class A, class F>
DLA_DEVICE void axpys(int M, int N, int K, const A* x, int ldx, const WeightRows<A>& w, A* scratch, F f) {
  M == 1 ? axpys_of<A, 1>(M, N, K, x, ldx, w, scratch, f) : axpys_of<A, kRows>(M, N, K, x, ldx, w, scratch, f);
}

}  // namespace cuda
}  // namespace dla
