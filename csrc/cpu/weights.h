// A cell's weights as the recurrence uses them. All three projections become one core:
//   u = relu(W1h h + p),  a = W2h u + q        (dense: a = Wh h + q)
// with p and q computed from y alone, for all layers at once:
//   joint: p = W1y y,  q = b2;   split: p = b1h,  q = W2y relu(W1y y + b1y) + b2y + b2h;
//   dense: q = Wy y + by + bh.
// W2 [NG*C, R] has its summed axis, the short bottleneck, along rows. It is transposed once per call into
// panels of kPanel gate columns, [NG*C / kPanel, R, kPanel], whose vectors run along channels.
#pragma once

#include "tensors.h"
#include "threads.h"

namespace dla {
namespace cpu {

template <class A>
struct CellWeights {
  Projection projection;
  int64_t C, R, N;                         // N = NG * C gate rows; R = 0 for dense
  Rows<const A> w1h, w1y;                  // [R, C]; dense: Wh, Wy [N, C]
  Rows<const A> w2h, w2y;                  // [N, R]
  Matrix<A> panels_h, panels_y;            // the same in panels
  const A *b1h = nullptr, *b1y = nullptr;  // [R], split only
  Rows<const A> q_bias;                    // one row [N] for all: what q holds besides y

  CellWeights(const Tensors& weights, int64_t C, const RuleKernels<A>& rule)
      : projection(projection_of(weights)), C(C), N(rule.NG * C), held_(as_contiguous(weights)) {
    const auto at = [&](size_t i) { return read<A>(held_[i]); };
    R = projection == Projection::kDense ? 0 : held_[0].size(0);
    switch (projection) {
      case Projection::kJoint:
        w1h = {at(0), 2 * C}, w1y = {at(0) + C, 2 * C};
        w2h = {at(1), R};
        q_bias = {at(2), 0};
        break;
      case Projection::kSplit:
        w1y = {at(0), C}, w1h = {at(4), C};
        b1y = at(1), b1h = at(5);
        w2y = {at(2), R}, w2h = {at(6), R};
        q_bias = sum(at(3), at(7));
        break;
      case Projection::kDense:
        w1y = {at(0), C}, w1h = {at(2), C};
        q_bias = sum(at(1), at(3));
        break;
      case Projection::kSqueeze:  // of cells that have no recurrence
        break;
    }
    if (w2h.data) panels_h = to_panels(w2h);
    if (w2y.data) panels_y = to_panels(w2y);
  }
  bool bottleneck() const { return projection != Projection::kDense; }
  // What one step of the scan reads.
  int64_t bytes() const { return (bottleneck() ? R * (C + N) : N * C) * int64_t(sizeof(A)); }

 private:
  Tensors held_;
  Matrix<A> sum_;

  Matrix<A> to_panels(Rows<const A> w2) const {
    const int64_t count = (N + kPanel - 1) / kPanel;
    Matrix<A> panels(count * R, kPanel);
    parallel_for(count, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        row_kernels<A>().pack(std::min(kPanel, N - i * kPanel), R, w2.from(i * kPanel), panels.rows.from(i * R));
    });
    return panels;
  }
  Rows<const A> sum(const A* a, const A* b) {
    sum_ = Matrix<A>(1, N);
    for (int64_t n = 0; n < N; ++n) sum_[0][n] = a[n] + b[n];
    return {sum_[0], 0};
  }
};

}  // namespace cpu
}  // namespace dla
