// What the kernel of the weight gradients is told, and how its blocks share the work.
#pragma once

#include <cstdint>

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

constexpr int kTile = 32;  // a block's output is kTile x kTile
constexpr int kPatch = 4;  // a thread's kPatch x kPatch
constexpr int kSlab = 32;  // rows that are staged at once
constexpr int kParts = 4;  // of the block, which share the rows of a slab
constexpr int kPartThreads = (kTile / kPatch) * (kTile / kPatch);
constexpr int kGradientThreads = kParts * kPartThreads;

template <class A>
constexpr int64_t gradient_shared_bytes() {
  return (2 * kSlab * kTile > kParts * kTile * kTile ? 2 * kSlab * kTile : kParts * kTile * kTile) * sizeof(A);
}
inline int64_t tiles_of(int64_t M, int64_t N) { return ((M + kTile - 1) / kTile) * ((N + kTile - 1) / kTile); }

}  // namespace cuda
}  // namespace dla
