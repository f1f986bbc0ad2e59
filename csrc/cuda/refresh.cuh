// refresh: d_t = Dyn(y_t, c_T) for all layers at once; and its gradients. The state, [B, C], is CellArgs' h0, c0.
#pragma once

#include "recurrence_bwd.cuh"
#include "refresh_args.h"

namespace dla {
namespace cuda {

template <class A>
DLA_KERNEL(refresh_kernel, A, RefreshArgs<A>) {
  Recurrence<A> tile(args.cell);
  while (tile.next()) {
    tile.load_rows(args.y, tile.buffer(kY));
    tile.load_start(tile.buffer(kH), tile.buffer(kC));
    block_barrier();
    tile.hoist(nullptr);
    tile.refresh([&](int m0, int M, const A* d) { tile.store_rows(d, m0, M, args.d); });
  }
}

template <class A>
DLA_KERNEL(refresh_bwd_kernel, A, RefreshBwdArgs<A>) {
  RecurrenceBwd<A> tile(args.cell, args.grads);
  while (tile.next()) {
    const A* const dy = tile.buffer(kDY);
    tile.load_rows(args.y, tile.buffer(kY));
    tile.load_rows(args.dd, tile.buffer(kDD));
    tile.load_start(tile.buffer(kH), tile.buffer(kC));
    block_barrier();
    tile.begin();
    tile.refresh();
    tile.keep_start();
    tile.finish();
    tile.store_rows(dy, 0, tile.rows(), args.dy);
  }
}

}  // namespace cuda
}  // namespace dla
