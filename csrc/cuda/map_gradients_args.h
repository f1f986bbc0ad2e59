// What the kernels are told that find the gradients of gates, and those of maps, each in a launch of its own.
#pragma once

#include "layers.h"
#include "pieces.h"

namespace dla {
namespace cuda {

template <class T>
struct GateGradientsArgs {
  Pieces pieces;
  accumulate_t<T>* dd;  // [T, B, C] written
  Layers layers;
};

template <class T>
struct MapGradientsArgs {
  Pieces pieces;
  const accumulate_t<T>*d, *dy;  // [T, B, C]
  Layers layers;
};

}  // namespace cuda
}  // namespace dla
