// What light_step's kernels are told.
#pragma once

#include "cell_args.h"
#include "layers.h"
#include "parts.h"

namespace dla {
namespace cuda {

template <class A>
struct LightFilters {
  const A *q, *k;  // [K]
  const A *v, *e;  // [C, 9]; e may be null
  const A* lam;    // [C]
  int K, heads;
};

// Layers: of the maps, x and, where there is one, o_prev. A cell without gates is none.
template <class T>
struct LightStepArgs {
  using A = accumulate_t<T>;
  CellArgs<A> cell;
  LightFilters<A> filters;
  int W;
  Part part;
  const A* d;              // [B, C] of o_prev, after the step; null without
  A* y;                    // [maps, B, C] written, but after the step
  A *states_h, *states_c;  // [B, C] written
  A* planes;               // [2, B, C] written, for the moments; may be null
  Layer layers[2];
};

template <class T>
struct LightStepBwdArgs {
  using A = accumulate_t<T>;
  CellArgs<A> cell;
  RecurrenceGrads<A> grads;
  LightFilters<A> filters;
  int W;
  Part part;
  A *dd, *middle;       // [B, C] of o_prev, written before the step; middle read after it: as kDD, kMiddle
  const A *d, *dy;      // [B, C] of o_prev, null without, and [maps, B, C]: after the step
  const A* y;           // [maps, B, C]
  A *dv, *de, *dlam;    // [B, C, 9] and [B, C] written, of each sample
  A* dtaps;             // [B, blocks per tile, 2, K] written, of each block's channels: dq, dk
  A *dgates, *dscores;  // [B, C] and [B, heads], for the blocks of a group to exchange
  Layer layers[2];
};

}  // namespace cuda
}  // namespace dla
