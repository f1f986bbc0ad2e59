// What depthwise's kernels are told.
#pragma once

#include "layers.h"
#include "pieces.h"

namespace dla {
namespace cuda {

template <class T>
struct DepthwiseArgs {
  using A = accumulate_t<T>;
  Pieces pieces;
  int W;
  const A* v;  // [C, 9]
  A* y;        // [2, B, C] written
  Layer layer;
};
template <class T>
struct DepthwiseBwdArgs {
  using A = accumulate_t<T>;
  Pieces pieces;
  int W;
  const A *v, *dy;  // [C, 9]; [2, B, C]
  A* dv;            // [B, C, 9] written, of each sample
  Layer layer;
};

}  // namespace cuda
}  // namespace dla
