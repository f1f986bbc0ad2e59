// What every kernel with a cell is told of it, and of its gradients.
#pragma once

#include "../common.h"
#include "plan.h"

namespace dla {
namespace cuda {

// What every kernel with a recurrence is told. Tensors of rows are [T, B, C], states before the first
// layer [B, C]; pointers may be null where a comment says so.
template <class A>
struct CellArgs {
  Plan plan;
  A* workspace;
  int rule, NG;
  Projection projection;
  int64_t T, B, C, R;
  int scan_end, refresh_begin;  // the scan runs over layers [0, scan_end), the refresh over [refresh_begin, T)
  const A *w1h, *w1y;           // [R, C] in rows of ld_w1; dense: Wh, Wy [NG*C, C]
  int64_t ld_w1;
  const A *w2h, *w2y;  // [NG*C, R]
  const A *b1h, *b1y;  // [R] split only
  const A *q0, *q1;    // [NG*C] what q holds besides y; q1 may be null
  const A *h0, *c0;    // h0 null: act(c0); both: the cell's own start
  A start_h;
  bool saves_h, saves_c;
};

// Factors of the weight gradients, rows [T, B]; null where the pass or the projection has none.
template <class A>
struct Factors {
  A* h;                        // [T, B, C] what each layer's projection saw
  A *da_scan, *da_refresh;     // [T, B, NG*C]
  A *u_scan, *u_refresh, *uy;  // [T, B, R]
  A *ds_scan, *ds_refresh, *dsy;
  A *h_last, *last_sum;  // [B, C], and [B, R] (dense: [B, NG*C]): over the layers, what refresh sent to W1h h
};

template <class A>
struct RecurrenceGrads {
  const A *states_h, *states_c;    // [scan_end, B, C] as saved
  const A *dstates_h, *dstates_c;  // [scan_end, B, C]; may be null
  A *dh0, *dc0;                    // [B, C] written; may be null
  Factors<A> factors;
};

}  // namespace cuda
}  // namespace dla
