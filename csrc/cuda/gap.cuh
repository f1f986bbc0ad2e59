// gap: y_t = mean over HW of x_t. A block takes some channels of one sample of one layer.
#pragma once

#include "stacks.cuh"

namespace dla {
namespace cuda {

// f(t, b, c0, cs)
template <class F>
DLA_DEVICE void my_piece(const Pieces& p, F f) {
  const int64_t pieces = (p.C + p.channels - 1) / p.channels, i = block_index();
  const int64_t c0 = i % pieces * p.channels, tb = i / pieces;
  f(int(tb / p.B), tb % p.B, c0, int(p.C - c0 < p.channels ? p.C - c0 : p.channels));
}

template <class T>
DLA_KERNEL(gap_kernel, T, GapArgs<T>) {
  using A = accumulate_t<T>;
  my_piece(args.pieces, [&](int t, int64_t b, int64_t c0, int cs) {
    A* const y = args.y + (t * args.pieces.B + b) * args.pieces.C + c0;
    sums<false, T>(args.layers.at, t, 1, b, c0, cs, kIn, kIn, reinterpret_cast<A*>(shared_memory()),
                   [&](int t, int c, A sum) { y[c] = sum / A(args.layers.at[t].HW); });
  });
}

}  // namespace cuda
}  // namespace dla
