// Gradients of weights: products of two factors over all rows of a batch, each element summed in one fixed order.
#pragma once

#include <vector>

#include "tensors.h"
#include "threads.h"

namespace dla {
namespace cpu {

// sum over rows k of g[k, :]^T x[k, :]
template <class A>
struct Product {
  Rows<const A> g, x;
  int64_t K;
};

// Outputs out [M, N], each a sum of products, cut into tiles that the threads share.
template <class A>
class WeightProducts {
 public:
  void add(int64_t M, int64_t N, std::vector<Product<A>> terms, Rows<A> out) {
    for (int64_t m = 0; m < M; m += kRows)
      for (int64_t n = 0; n < N; n += kColumns)
        tasks_.push_back({m, n, std::min(kRows, M - m), std::min(kColumns, N - n), terms, out.from(m).right(n)});
  }
  // The same to a tensor of its own, whose shape says what M and N are; N alone: M = 1.
  Tensor made(std::vector<int64_t> shape, std::vector<Product<A>> terms) {
    Tensor out = empty<A>(shape);
    const Rows<A> rows = rows_of<A>(out);
    add(shape.size() == 2 ? shape[0] : 1, rows.ld, std::move(terms), rows);
    return out;
  }
  // The factor that all rows share of a product that sums the other's.
  Rows<const A> ones() const { return {&kOne, 0}; }
  Tensor column_sums(int64_t K, Rows<const A> x, int64_t N) { return made({N}, {{ones(), x, K}}); }

  void run() const {
    parallel_for(tasks_.size(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Task& task = tasks_[i];
        Rows<const A> so_far;
        for (const Product<A>& p : task.terms) {
          if (p.K == 0 && &p != &task.terms.front()) continue;
          row_kernels<A>().axpys(task.M, task.N, p.K, p.g.data + task.m, 1, p.g.ld, p.x.right(task.n), so_far,
                                 task.out);
          so_far = task.out;
        }
      }
    });
  }

 private:
  static constexpr A kOne = 1;
  static constexpr int64_t kRows = 64, kColumns = 64;
  struct Task {
    int64_t m, n, M, N;
    std::vector<Product<A>> terms;
    Rows<A> out;
  };
  std::vector<Task> tasks_;
};

}  // namespace cpu
}  // namespace dla
