// The gradients of gates and maps, where the cell has launches of its own between them.
#pragma once

#include "map_gradients_args.h"
#include "pieces.cuh"
#include "stacks.cuh"

namespace dla {
namespace cuda {

// dd_t = sum over HW of dx'_t * x_t
template <class T>
DLA_KERNEL(gate_gradients_kernel, T, GateGradientsArgs<T>) {
  using A = accumulate_t<T>;
  my_piece(args.pieces, [&](int t, int64_t b, int64_t c0, int cs) {
    A* const dd = args.dd + (t * args.pieces.B + b) * args.pieces.C + c0;
    sums<true, T>(args.layers.at, t, 1, b, c0, cs, kIn, kGradOut, reinterpret_cast<A*>(shared_memory()),
                  [&](int, int c, A sum) { dd[c] = sum; });
  });
}

// dx_t = dx'_t * d_t + dy_t / HW
template <class T>
DLA_KERNEL(map_gradients_kernel, T, MapGradientsArgs<T>) {
  my_piece<true>(args.pieces, [&](int t, int64_t b, int64_t c0, int cs) {
    const int64_t row = (t * args.pieces.B + b) * args.pieces.C + c0;
    scale<true, T>(args.layers.at, t, 1, b, c0, cs, kGradOut, kGradIn, args.d + row, args.dy + row, 0,
                   1 / accumulate_t<T>(args.layers.at[t].HW));
  });
}

}  // namespace cuda
}  // namespace dla
