// What mix's kernels are told.
#pragma once

#include "layers.h"
#include "pieces.h"

namespace dla {
namespace cuda {

template <class T>
struct MixArgs {
  using A = accumulate_t<T>;
  Pieces pieces;
  int M;
  const A* coef;  // [M, B, C]
  A* planes;      // [2, B, C] written, for the moments; may be null
  Layer out;
  Layers values;
};
template <class T>
struct MixBwdArgs {
  using A = accumulate_t<T>;
  Pieces pieces;
  int M;
  bool has_later;
  const A* coef;  // [M, B, C]
  A* dcoef;       // [M, B, C] written
  Layer dout;
  Layers values;
};

}  // namespace cuda
}  // namespace dla
