// The weight gradients: sums of products g^T x over the rows of the whole batch, every output a tile of one group of
// blocks.
#pragma once

#include "tile_product.cuh"
#include "weight_gradients_args.h"

namespace dla {
namespace cuda {

template <class A>
DLA_KERNEL(weight_gradients_kernel, A, WeightGradientArgs<A>) {
  const int ranks = cluster_size(), index = block_index() / ranks;
  int which = 0;
  while (which + 1 < args.count && index >= args.of[which + 1].first_tile) ++which;
  const WeightGradient<A>& of = args.of[which];
  const int64_t tile = index - of.first_tile, across = divide_up(of.N, kTile);
  const int64_t m0 = tile / across * kTile, n0 = tile % across * kTile;
  const auto row = [&](int m) { return m0 + m < of.M ? m0 + m : int64_t(-1); };
  const auto column = [&](int n) { return n0 + n < of.N ? n0 + n : int64_t(-1); };
  TileProduct<A> product(reinterpret_cast<A*>(shared_memory()));
  for (const Product<A>& term : of.term)
    product.add({term.g, term.ldg, false}, row, {term.x, term.ldx, false}, column, term.K);
  product.finish([&](auto sums) {
    for (int j = cluster_rank() * num_threads() + thread_index(); j < kTile * kTile; j += ranks * num_threads()) {
      const int m = j / kTile, n = j % kTile;
      if (row(m) >= 0 && column(n) >= 0) of.out[row(m) * of.ld + column(n)] = sums(m, n);
    }
  });
}

}  // namespace cuda
}  // namespace dla
