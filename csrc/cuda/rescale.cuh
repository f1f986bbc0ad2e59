// rescale: x_t * d_t, broadcast over HW; and its gradients. Maps of a layer as in layer_update.cuh.
#pragma once

#include "gap.cuh"

namespace dla {
namespace cuda {

template <class T>
DLA_KERNEL(rescale_kernel, T, RescaleArgs<T>) {
  my_piece(args.pieces, [&](int t, int64_t b, int64_t c0, int cs) {
    const Layer& layer = args.layers.at[t];
    const int64_t row = (t * args.pieces.B + b) * args.pieces.C + c0;
    scale(layer, plane<const T>(layer, 0, b, c0), args.d + row, plane<T>(layer, 1, b, c0), cs);
  });
}

template <class T>
DLA_KERNEL(rescale_bwd_kernel, T, RescaleBwdArgs<T>) {
  using A = accumulate_t<T>;
  my_piece(args.pieces, [&](int t, int64_t b, int64_t c0, int cs) {
    const Layer& layer = args.layers.at[t];
    const int64_t row = (t * args.pieces.B + b) * args.pieces.C + c0;
    const auto dout = plane<const T>(layer, 1, b, c0);
    sums<true>(layer, plane<const T>(layer, 0, b, c0), dout, cs, reinterpret_cast<A*>(shared_memory()),
               [&](int c, A sum) { args.dd[row + c] = sum; });
    scale(layer, dout, args.d + row, plane<T>(layer, 2, b, c0), cs);
  });
}

}  // namespace cuda
}  // namespace dla
