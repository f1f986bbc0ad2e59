// scan: c_t = Dyn(y_t, c_{t-1}); and its gradients.
#pragma once

#include "recurrence_bwd.cuh"
#include "scan_args.h"

namespace dla {
namespace cuda {

template <class A>
DLA_KERNEL(scan_kernel, A, ScanArgs<A>) {
  Recurrence<A> tile(args.cell);
  while (tile.next()) {
    tile.load_rows(args.y, tile.buffer(kY));
    tile.load_start(tile.buffer(kH), tile.buffer(kC));
    block_barrier();
    tile.hoist(nullptr);
    tile.scan(args.states_h, args.states_c);
  }
}

template <class A>
DLA_KERNEL(scan_bwd_kernel, A, ScanBwdArgs<A>) {
  RecurrenceBwd<A> tile(args.cell, args.grads);
  while (tile.next()) {
    const A* const dy = tile.buffer(kDY);
    tile.load_rows(args.y, tile.buffer(kY));
    block_barrier();
    tile.begin();
    tile.scan();
    tile.keep_start();
    tile.finish();
    tile.store_rows(dy, 0, tile.rows(), args.dy);
  }
}

}  // namespace cuda
}  // namespace dla
