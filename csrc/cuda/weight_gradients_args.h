// What the kernel of the weight gradients is told.
#pragma once

#include <cstdint>

#include "tile_product.h"

namespace dla {
namespace cuda {

// sum over K rows of g[k][m] * x[k][n]; x null: of g[k][m] alone, for a bias.
template <class A>
struct Product {
  const A *g, *x;
  int64_t ldg, ldx, K;
};
template <class A>
struct WeightGradient {
  A* out;  // [M, N] in rows of ld
  int64_t M, N, ld;
  Product<A> term[2];
  int64_t first_tile;
};
constexpr int kMostWeights = 13;  // eight of split, where joint's w1 counts twice; five of layer attention
template <class A>
struct WeightGradientArgs {
  int count;
  WeightGradient<A> of[kMostWeights];
};

}  // namespace cuda
}  // namespace dla
