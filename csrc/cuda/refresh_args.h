// What refresh's kernels are told.
#pragma once

#include "cell_args.h"

namespace dla {
namespace cuda {

template <class A>
struct RefreshArgs {
  CellArgs<A> cell;
  const A* y;  // [T, B, C]
  A* d;        // [T, B, C] written
};

template <class A>
struct RefreshBwdArgs {
  CellArgs<A> cell;
  RecurrenceGrads<A> grads;
  const A *y, *dd;  // [T, B, C]
  A* dy;            // [T, B, C] written
};

}  // namespace cuda
}  // namespace dla
