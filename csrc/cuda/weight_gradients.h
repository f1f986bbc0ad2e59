// Gradients of weights: sums over rows that earlier launches have left in global memory.
#pragma once

#include <algorithm>

#include "host.h"
#include "weight_gradients_args.h"

namespace dla {
namespace cuda {

// Those of all weights of a call, by one launch.
template <class A>
class WeightGradients {
 public:
  // to [M, N] in rows of ld = the sum of both products.
  void add(A* to, int64_t M, int64_t N, int64_t ld, Product<A> a, Product<A> b) {
    args_.of[args_.count++] = {to, M, N, ld, {a, b}, tiles_};
    tiles_ += tiles_of(M, N);
  }
  // to [M] = the sums of the columns of g [rows, M], whose rows lie ld apart.
  void add_column_sums(A* to, int64_t M, const A* g, int64_t ld, int64_t rows) {
    add(to, M, 1, 1, {g, nullptr, ld, 0, rows}, {});
  }
  void run(const OnDevice& device) const {
    // As many blocks as share a tile's rows.
    const int group = std::min(current_device().largest_cluster, kMaxGroup);
    Launch how{tiles_ * group, group, kProductThreads, product_shared_bytes<A>()};
    if (clusters_that_fit<WeightGradientArgs<A>>(how) == 0) how.blocks = tiles_, how.cluster = 1;
    cuda::run(device, args_, how);
  }

 private:
  WeightGradientArgs<A> args_{};
  int64_t tiles_ = 0;
};

}  // namespace cuda
}  // namespace dla
