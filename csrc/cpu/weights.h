// A cell's weights as the recurrence uses them. All three projections become one core:
//   u = relu(W1h h + p),  a = W2h u + q        (dense: a = Wh h + q)
// with p and q computed from y alone, for all layers at once:
//   joint: p = W1y y,  q = b2;   split: p = b1h,  q = W2y relu(W1y y + b1y) + b2y + b2h;
//   dense: q = Wy y + by + bh.
// W2 is kept transposed, [R, NG*C], so that its vectors run along channels (leaves/gemm.h).
#pragma once

#include "tensors.h"
#include "threads.h"

namespace dla {
namespace cpu {

// out [N, M] = in [M, N]^T, in tiles that fit the first-level cache.
template <class A>
void transpose(int64_t M, int64_t N, Rows<const A> in, Rows<A> out) {
  constexpr int64_t kTile = 16;
  parallel_for((M + kTile - 1) / kTile, [&](int64_t begin, int64_t end) {
    for (int64_t m0 = begin * kTile; m0 < std::min(M, end * kTile); m0 += kTile)
      for (int64_t n0 = 0; n0 < N; n0 += kTile)
        for (int64_t n = n0; n < std::min(N, n0 + kTile); ++n)
          for (int64_t m = m0; m < std::min(M, m0 + kTile); ++m) out[n][m] = in[m][n];
  });
}

template <class A>
struct CellWeights {
  Projection projection;
  int64_t C, R, N;  // N = NG * C gate rows; R = 0 for dense
  Rows<const A> w1h, w1y;      // [R, C]; dense: Wh, Wy [N, C]
  Rows<const A> w2h_t, w2y_t;  // [R, N]
  const A *b1h = nullptr, *b1y = nullptr;  // [R], split only
  Rows<const A> q_bias;        // one row [N] for all: what q holds besides y

  CellWeights(const Tensors& weights, int64_t C, const RuleLeaves<A>& rule)
      : projection(projection_of(weights)), C(C), N(rule.NG * C), held_(dense(weights)) {
    const auto at = [&](size_t i) { return read<A>(held_[i]); };
    R = projection == Projection::kDense ? 0 : held_[0].size(0);
    switch (projection) {
      case Projection::kJoint:
        w1h = {at(0), 2 * C}, w1y = {at(0) + C, 2 * C};
        w2h_t = transposed(at(1));
        q_bias = {at(2), 0};
        break;
      case Projection::kSplit:
        w1y = {at(0), C}, w1h = {at(4), C};
        b1y = at(1), b1h = at(5);
        w2y_t = transposed(at(2)), w2h_t = transposed(at(6));
        q_bias = sum(at(3), at(7));
        break;
      case Projection::kDense:
        w1y = {at(0), C}, w1h = {at(2), C};
        q_bias = sum(at(1), at(3));
        break;
    }
  }
  bool bottleneck() const { return projection != Projection::kDense; }

 private:
  Tensors held_;
  std::vector<Matrix<A>> made_;

  Rows<const A> transposed(const A* w2) {
    made_.emplace_back(R, N);
    transpose<A>(N, R, {w2, R}, made_.back().rows);
    return made_.back().rows;
  }
  Rows<const A> sum(const A* a, const A* b) {
    made_.emplace_back(1, N);
    for (int64_t n = 0; n < N; ++n) made_.back()[0][n] = a[n] + b[n];
    return {made_.back()[0], 0};
  }
};

}  // namespace cpu
}  // namespace dla
