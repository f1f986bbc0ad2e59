// layer_update: pooling, scan, refresh and rescale of one tile of samples, whole, before the next: its maps are
// then read again while they are still in the second-level cache.
#pragma once

#include "layer_update_args.h"
#include "recurrence_bwd.cuh"
#include "stacks.cuh"

namespace dla {
namespace cuda {

template <class T>
DLA_KERNEL(layer_update_kernel, T, LayerUpdateArgs<T>) {
  using A = accumulate_t<T>;
  Recurrence<A> tile(args.cell);
  while (tile.next()) {
    const int nb = tile.nb, cs = tile.cs;
    A* const y = tile.buffer(kY);
    for_stacks(args.layers, tile.T, nb, [&](int t0, int layers, int i) {
      sums<false, T>(args.layers.at, t0, layers, tile.b0 + i, tile.c0, cs, kIn, kIn, tile.buffer(kScratch),
                     [&](int t, int c, A sum) {
                       const int m = t * nb + i;
                       y[m * cs + c] = args.y[tile.at(m, c)] = sum / A(args.layers.at[t].HW);
                     });
    });
    tile.load_start(tile.buffer(kH), tile.buffer(kC));
    block_barrier();
    tile.hoist(nullptr);
    tile.scan(args.states_h, args.states_c);
    tile.refresh([&](int m0, int M, const A* d) {
      const int first = tile.layer_of(m0);
      for_stacks(args.layers, M / nb, nb, [&](int t0, int layers, int i) {
        scale<false, T>(args.layers.at, first + t0, layers, tile.b0 + i, tile.c0, cs, kIn, kOut, d + (t0 * nb + i) * cs,
                        static_cast<const A*>(nullptr), nb * cs);
      });
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
    for_stacks(args.layers, tile.T, nb, [&](int t0, int layers, int i) {
      sums<true, T>(args.layers.at, t0, layers, tile.b0 + i, tile.c0, cs, kIn, kGradOut, tile.buffer(kScratch),
                    [&](int t, int c, A sum) { tile.buffer(kDD)[(t * nb + i) * cs + c] = sum; });
    });
    tile.load_rows(args.y, tile.buffer(kY));
    block_barrier();
    tile.begin();
    tile.load_last();
    tile.refresh();
    tile.scan();
    tile.keep_start();
    tile.finish([&](int m, A dy) { return dy / A(args.layers.at[tile.layer_of(m)].HW); });
    for_stacks(args.layers, tile.T, nb, [&](int t0, int layers, int i) {
      const int first = (t0 * nb + i) * cs;
      scale<true, T>(args.layers.at, t0, layers, tile.b0 + i, tile.c0, cs, kGradOut, kGradIn, tile.buffer(kD) + first,
                     tile.buffer(kDY) + first, nb * cs);
    });
  }
}

}  // namespace cuda
}  // namespace dla
