// depthwise: value = dwconv(x; v), and the means of both; and its gradients.
#pragma once

#include "depthwise_args.h"
#include "pieces.cuh"
#include "stencil.cuh"

namespace dla {
namespace cuda {

template <class T>
DLA_KERNEL(depthwise_kernel, T, DepthwiseArgs<T>) {
  using A = accumulate_t<T>;
  my_piece(args.pieces, [&](int, int64_t b, int64_t c0, int cs) {
    const Layer& layer = args.layer;
    const auto x = plane<const T>(layer, kIn, b, c0);
    const auto value = plane<T>(layer, kOut, b, c0);
    const int64_t row = b * args.pieces.C + c0;
    stencil<T, Sums<A, 2>, 1, 0, 1, 8>(
        layer, !layer.interleaved, args.W, cs, reinterpret_cast<A*>(shared_memory()),
        [&](int c, auto& maps) {
          maps.near[0] = channel(layer, x, c);
          maps.out[0] = channel(layer, value, c);
          const Taps<A> v = load_taps(args.v + (c0 + c) * kTaps);
          return [=](Sums<A, 2>& few, auto& row) {
            constexpr int kPixels = std::decay_t<decltype(row)>::kPixels;
            A value[kPixels];
#pragma unroll
            for (int k = 0; k < kPixels; ++k) value[k] = v.filter([&](int a, int b) { return row.near(0, k, a, b); });
            row.write(0, value);
#pragma unroll
            for (int k = 0; k < kPixels; ++k) few.v[0] += row.near(0, k, 1, 1), few.v[1] += value[k];
          };
        },
        [&](int c, const Sums<A, 2>& sums) {
          args.y[row + c] = sums.v[0] / A(layer.HW);
          args.y[args.pieces.B * args.pieces.C + row + c] = sums.v[1] / A(layer.HW);
        });
  });
}

template <class T>
DLA_KERNEL(depthwise_bwd_kernel, T, DepthwiseBwdArgs<T>) {
  using A = accumulate_t<T>;
  my_piece(args.pieces, [&](int, int64_t b, int64_t c0, int cs) {
    const Layer& layer = args.layer;
    const auto x = plane<const T>(layer, kIn, b, c0), dvalue = plane<const T>(layer, kGradOut, b, c0);
    const auto dx = plane<T>(layer, kGradIn, b, c0);
    const int64_t row = b * args.pieces.C + c0;
    stencil<T, Sums<A, kTaps>, 1, 1, 1, 4, true>(
        layer, !layer.interleaved, args.W, cs, reinterpret_cast<A*>(shared_memory()),
        [&](int c, auto& maps) {
          const A dmean_x = args.dy[row + c] / A(layer.HW);
          maps.plus = args.dy[args.pieces.B * args.pieces.C + row + c] / A(layer.HW);
          maps.near[0] = channel(layer, dvalue, c);
          maps.here[0] = channel(layer, x, c);
          maps.out[0] = channel(layer, dx, c);
          const Taps<A> v = load_taps(args.v + (c0 + c) * kTaps);
          return [=](Sums<A, kTaps>& few, auto& row) {
            constexpr int kPixels = std::decay_t<decltype(row)>::kPixels;
            A dx_of[kPixels];
#pragma unroll
            for (int k = 0; k < kPixels; ++k) {
              const auto around = [&](int a, int b) { return row.near(0, k, a, b); };
              correlate(row.here(0, k), around, few.v);
              dx_of[k] = v.transposed(around, dmean_x);
            }
            row.write(0, dx_of);
          };
        },
        [&](int c, const Sums<A, kTaps>& sums) {
#pragma unroll
          for (int s = 0; s < kTaps; ++s) args.dv[(row + c) * kTaps + s] = sums.v[s];
        });
  });
}

}  // namespace cuda
}  // namespace dla
