// What gap's kernel is told.
#pragma once

#include "layers.h"
#include "pieces.h"

namespace dla {
namespace cuda {

template <class T>
struct GapArgs {
  Pieces pieces;
  accumulate_t<T>* y;  // [T, B, C] written
  Layers layers;
};

}  // namespace cuda
}  // namespace dla
