// rescale: x_t * d_t, broadcast over HW; and its gradients.
#pragma once

#include "pieces.cuh"
#include "rescale_args.h"
#include "stacks.cuh"

namespace dla {
namespace cuda {

template <class T>
DLA_KERNEL(rescale_kernel, T, RescaleArgs<T>) {
  my_piece<true>(args.pieces, [&](int t, int64_t b, int64_t c0, int cs) {
    const int64_t row = (t * args.pieces.B + b) * args.pieces.C + c0;
    scale<false, T>(args.layers.at, t, 1, b, c0, cs, kIn, kOut, args.d + row, nullptr, 0);
  });
}

template <class T>
DLA_KERNEL(rescale_bwd_kernel, T, RescaleBwdArgs<T>) {
  using A = accumulate_t<T>;
  my_piece(args.pieces, [&](int t, int64_t b, int64_t c0, int cs) {
    const int64_t row = (t * args.pieces.B + b) * args.pieces.C + c0;
    sums<true, T>(args.layers.at, t, 1, b, c0, cs, kIn, kGradOut, reinterpret_cast<A*>(shared_memory()),
                  [&](int, int c, A sum) { args.dd[row + c] = sum; });
    scale<false, T>(args.layers.at, t, 1, b, c0, cs, kGradOut, kGradIn, args.d + row, nullptr, 0);
  });
}

}  // namespace cuda
}  // namespace dla
