// The weight gradients: sums of products g^T x over the rows of the whole batch, every output a tile of one group of
// blocks, which share the rows out and add up in order of rank: every sum is taken in one fixed order.
#pragma once

#include "device.h"
#include "weight_gradients_args.h"

namespace dla {
namespace cuda {

template <class A>
DLA_KERNEL(weight_gradients_kernel, A, WeightGradientArgs<A>) {
  const int rank = cluster_rank(), ranks = cluster_size(), index = block_index() / ranks;
  int which = 0;
  while (which + 1 < args.count && index >= args.of[which + 1].first_tile) ++which;
  const WeightGradient<A>& of = args.of[which];
  const int64_t tile = index - of.first_tile, across = (of.N + kTile - 1) / kTile;
  const int64_t m0 = tile / across * kTile, n0 = tile % across * kTile;
  const int M = int(of.M - m0 < kTile ? of.M - m0 : kTile), N = int(of.N - n0 < kTile ? of.N - n0 : kTile);

  A* const gs = reinterpret_cast<A*>(shared_memory());  // [kSlab, kTile]
  A* const xs = gs + kSlab * kTile;                     // [kSlab, kTile]
  const int part = thread_index() / kPartThreads, own = thread_index() % kPartThreads;
  const int pm = own / (kTile / kPatch) * kPatch, pn = own % (kTile / kPatch) * kPatch;
  A sum[kPatch][kPatch] = {};

  // A slab of rows is read into registers while the one before is being multiplied.
  constexpr int kOwn = kSlab * kTile / kGradientThreads;
  A next_g[kOwn], next_x[kOwn];
  int term = 0;
  int64_t k0 = rank * kSlab;
  const auto skip_to_rows = [&] {
    while (term < 2 && k0 >= of.term[term].K) ++term, k0 = rank * kSlab;
    return term < 2;
  };
  const auto read_slab = [&] {
    const Product<A>& p = of.term[term];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int j = i * kGradientThreads + thread_index(), c = j % kTile;
      const int64_t k = k0 + j / kTile;
      next_g[i] = k < p.K && c < M ? p.g[k * p.ldg + m0 + c] : A(0);
      next_x[i] = k < p.K && c < N ? (p.x ? p.x[k * p.ldx + n0 + c] : A(1)) : A(0);
    }
  };
  bool more = skip_to_rows();
  if (more) read_slab();
  while (more) {
    block_barrier();
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int j = i * kGradientThreads + thread_index();
      gs[j] = next_g[i], xs[j] = next_x[i];
    }
    block_barrier();
    k0 += ranks * kSlab;
    more = skip_to_rows();
    if (more) read_slab();
    for (int k = part; k < kSlab; k += kParts)
#pragma unroll
      for (int m = 0; m < kPatch; ++m)
#pragma unroll
        for (int n = 0; n < kPatch; ++n) sum[m][n] = fma(gs[k * kTile + pm + m], xs[k * kTile + pn + n], sum[m][n]);
  }
  block_barrier();
  A* const parts = gs;  // [kParts, kTile, kTile], over what was staged
#pragma unroll
  for (int m = 0; m < kPatch; ++m)
#pragma unroll
    for (int n = 0; n < kPatch; ++n) parts[(part * kTile + pm + m) * kTile + pn + n] = sum[m][n];
  block_barrier();
  A* const mine = xs;  // [kTile, kTile], what this block has found
  for (int j = thread_index(); j < kTile * kTile; j += num_threads()) {
    A total = A(0);
    for (int p = 0; p < kParts; ++p) total += parts[p * kTile * kTile + j];
    mine[j] = total;
  }
  group_barrier();
  for (int j = rank * kGradientThreads + thread_index(); j < kTile * kTile; j += ranks * kGradientThreads) {
    const int m = j / kTile, n = j % kTile;
    A total = A(0);
    for (int other = 0; other < ranks; ++other) total += (ranks > 1 ? peer(mine, other) : mine)[j];
    if (m < M && n < N) of.out[(m0 + m) * of.ld + n0 + n] = total;
  }
  group_barrier();  // nobody leaves while others read
}

}  // namespace cuda
}  // namespace dla
