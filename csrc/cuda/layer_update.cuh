// layer_update: pooling, scan, refresh and rescale of one tile of samples, whole, before the next: its maps are
// then read again while they are still in the second-level cache. Where the maps of a layer stand in
// Layer::map: 0 the input x; forward: 1 the result; backward: 1 the gradient that arrives, 2 the one of x.
#pragma once

#include "planes.cuh"
#include "recurrence_bwd.cuh"

namespace dla {
namespace cuda {

template <class T>
DLA_KERNEL(layer_update_kernel, T, LayerUpdateArgs<T>) {
  using A = accumulate_t<T>;
  Recurrence<A> tile(args.cell);
  while (tile.next()) {
    const int nb = tile.nb, cs = tile.cs;
    A* const y = tile.buffer(kY);
    for (int t = 0; t < tile.T; ++t) {
      const Layer& layer = args.layers.at[t];
      for (int i = 0; i < nb; ++i) {
        const auto x = plane<const T>(layer, 0, tile.b0 + i, tile.c0);
        const int m = t * nb + i;
        sums<false>(layer, x, x, cs, tile.buffer(kScratch),
                    [&](int c, A sum) { y[m * cs + c] = args.y[tile.at(m, c)] = sum / A(layer.HW); });
      }
    }
    tile.load_start(tile.buffer(kH), tile.buffer(kC));
    block_barrier();
    tile.hoist(nullptr);
    tile.scan(args.states_h, args.states_c);
    tile.refresh([&](int m0, int M, const A* d) {
      for (int m = M - 1; m >= 0; --m) {
        const Layer& layer = args.layers.at[(m0 + m) / nb];
        const int64_t b = tile.b0 + (m0 + m) % nb;
        scale(layer, plane<const T>(layer, 0, b, tile.c0), d + m * cs, plane<T>(layer, 1, b, tile.c0), cs);
      }
    });
  }
}

// dd_t = sum over HW of dx'_t * x_t;  dx_t = dx'_t * d_t + dy_t / HW
template <class T>
DLA_KERNEL(layer_update_bwd_kernel, T, LayerUpdateBwdArgs<T>) {
  using A = accumulate_t<T>;
  RecurrenceBwd<A> tile(args.cell, args.grads);
  while (tile.next()) {
    const int nb = tile.nb, cs = tile.cs;
    A *const dd = tile.buffer(kDD), *const d = tile.buffer(kD), *const dy = tile.buffer(kDY);
    for (int t = 0; t < tile.T; ++t) {
      const Layer& layer = args.layers.at[t];
      for (int i = 0; i < nb; ++i) {
        const auto x = plane<const T>(layer, 0, tile.b0 + i, tile.c0);
        const auto dout = plane<const T>(layer, 1, tile.b0 + i, tile.c0);
        const int m = t * nb + i;
        sums<true>(layer, x, dout, cs, tile.buffer(kScratch), [&](int c, A sum) { dd[m * cs + c] = sum; });
      }
    }
    tile.load_rows(args.y, tile.buffer(kY));
    block_barrier();
    tile.begin();
    tile.load_last();
    tile.refresh();
    tile.scan();
    tile.keep_start();
    tile.finish();
    tile.for_each(tile.rows(), cs, [&](int m, int c) { dy[m * cs + c] /= A(args.layers.at[m / nb].HW); });
    block_barrier();
    for (int m = tile.rows() - 1; m >= 0; --m) {
      const Layer& layer = args.layers.at[m / nb];
      const int64_t b = tile.b0 + m % nb;
      scale<true>(layer, plane<const T>(layer, 1, b, tile.c0), d + m * cs, dy + m * cs, plane<T>(layer, 2, b, tile.c0),
                  cs);
    }
  }
}

}  // namespace cuda
}  // namespace dla
