// What scan's kernels are told.
#pragma once

#include "cell_args.h"

namespace dla {
namespace cuda {

template <class A>
struct ScanArgs {
  CellArgs<A> cell;
  const A* y;              // [T, B, C]
  A *states_h, *states_c;  // [T, B, C] written
};

template <class A>
struct ScanBwdArgs {
  CellArgs<A> cell;
  RecurrenceGrads<A> grads;
  const A* y;  // [T, B, C]
  A* dy;       // [T, B, C] written
};

}  // namespace cuda
}  // namespace dla
