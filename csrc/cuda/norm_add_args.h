// What norm_add's kernels are told.
#pragma once

#include "layers.h"
#include "pieces.h"

namespace dla {
namespace cuda {

template <class A>
struct NormArgs {
  const A *moments, *gamma, *beta;  // [2, C], [C], [C]
  const A* keep;                    // [B]; may be null
  A eps;
  bool relu;
};
template <class T>
struct NormAddArgs {
  Pieces pieces;
  NormArgs<accumulate_t<T>> norm;
  Layer layer;
};
template <class T>
struct NormAddSumsArgs {
  Pieces pieces;
  NormArgs<accumulate_t<T>> norm;
  accumulate_t<T>* sums;  // [2, B, C] written
  Layer layer;
};
template <class T>
struct NormAddBwdArgs {
  using A = accumulate_t<T>;
  Pieces pieces;
  NormArgs<A> norm;
  bool batch_moments;
  const A *dgamma, *dbeta;  // [C]
  Layer layer;
};

}  // namespace cuda
}  // namespace dla
