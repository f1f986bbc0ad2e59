// What rescale's kernels are told.
#pragma once

#include "layers.h"
#include "pieces.h"

namespace dla {
namespace cuda {

template <class T>
struct RescaleArgs {
  Pieces pieces;
  const accumulate_t<T>* d;  // [T, B, C]
  Layers layers;
};

template <class T>
struct RescaleBwdArgs {
  Pieces pieces;
  const accumulate_t<T>* d;  // [T, B, C]
  accumulate_t<T>* dd;       // [T, B, C] written
  Layers layers;
};

}  // namespace cuda
}  // namespace dla
