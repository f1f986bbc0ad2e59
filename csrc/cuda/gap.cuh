// gap: y_t = mean over HW of x_t. A block takes some channels of one sample of one layer.
#pragma once

#include "gap_args.h"
#include "pieces.cuh"
#include "stacks.cuh"

namespace dla {
namespace cuda {

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
