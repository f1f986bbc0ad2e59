// What layer_update's kernels are told.
#pragma once

#include "cell_args.h"
#include "layers.h"

namespace dla {
namespace cuda {

template <class T>
struct LayerUpdateArgs {
  using A = accumulate_t<T>;
  CellArgs<A> cell;
  A *y, *states_h, *states_c;  // [T, B, C] written
  Layers layers;
};

template <class T>
struct LayerUpdateBwdArgs {
  using A = accumulate_t<T>;
  CellArgs<A> cell;
  RecurrenceGrads<A> grads;
  const A* y;  // [T, B, C]
  Layers layers;
};

}  // namespace cuda
}  // namespace dla
