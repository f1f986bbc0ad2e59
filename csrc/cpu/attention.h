// What a layer's attention makes of its own filters: the gate of each head, and with it the 3x3 filters that one
// sample's maps go through. Docs: docs/notation.md.
#pragma once

#include <cmath>

#include "tensors.h"

namespace dla {
namespace cpu {

template <class A>
A dot(int64_t n, const A* a, const A* b) {
  constexpr int kChains = 16;  // side by side, so that long sums stay exact
  A some[kChains] = {};
  int64_t i = 0;
  for (; i + kChains <= n; i += kChains)
    for (int k = 0; k < kChains; ++k) some[k] += a[i + k] * b[i + k];
  for (int k = 0; i < n; ++i, ++k) some[k] += a[i] * b[i];
  for (int half = kChains / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) some[k] += some[k + half];
  return some[0];
}

// A depthwise filter [C, 1, 3, 3] as rows [9, C].
template <class A>
Matrix<A> tap_rows(const Tensor& filter, int64_t C) {
  const Tensor held = dense(filter);
  const Rows<const A> of_channel{read<A>(held), 9};
  Matrix<A> taps(9, C);
  for (int64_t c = 0; c < C; ++c)
    for (int k = 0; k < 9; ++k) taps[k][c] = of_channel[c][k];
  return taps;
}
// ... and back
template <class A>
Tensor from_tap_rows(const Matrix<A>& taps, int64_t C) {
  const Tensor filter = empty<A>({C, 1, 3, 3});
  for (int64_t c = 0; c < C; ++c)
    for (int k = 0; k < 9; ++k) write<A>(filter)[c * 9 + k] = taps[k][c];
  return filter;
}

constexpr int kCentre = 4;

// The gate of one layer, sig(q . k / sqrt(D)) per head, where q and k are 1-D filters over the channels of y.
template <class A>
class Gate {
 public:
  Gate(const Tensor& q, const Tensor& k, int64_t C, int64_t heads)
      : q_(dense(q)), k_(dense(k)), C_(C), K_(q.size(0)), D_(C / heads), scale_(1 / std::sqrt(A(D_))) {}

  // gate [C], one value within a head, from y [C]
  void operator()(const A* y, A* gate) const {
    const Vectors v(*this, y);
    for (int64_t c = 0; c < C_; c += D_) std::fill_n(gate + c, D_, of_head(v, c));
  }
  // From dgate [C]: adds to dy [C]; this sample's gradients of q and k go to dtaps [2, K].
  void backward(const A* y, const A* dgate, A* dy, A* dtaps) const {
    const Vectors v(*this, y);
    const Matrix<A> d(2, C_);
    for (int64_t c = 0; c < C_; c += D_) {
      const A gate = of_head(v, c);
      A sum = 0;
      for (int64_t i = c; i < c + D_; ++i) sum += dgate[i];
      const A dscore = sum * gate * (1 - gate) * scale_;
      for (int64_t i = c; i < c + D_; ++i) d[0][i] = dscore * v.qk[1][i], d[1][i] = dscore * v.qk[0][i];
    }
    for (int i = 0; i < 2; ++i) {
      const A* taps = read<A>(i ? k_ : q_);
      for (int64_t j = 0; j < K_; ++j) {
        const Span span(j - K_ / 2, C_);
        dtaps[i * K_ + j] = dot(span.n, d[i] + span.to, y + span.from);
        for (int64_t c = 0; c < span.n; ++c) dy[span.from + c] += taps[j] * d[i][span.to + c];
      }
    }
  }

 private:
  const Tensor q_, k_;
  const int64_t C_, K_, D_;
  const A scale_;

  // The channels `to` whose neighbour at this distance, `from`, there is.
  struct Span {
    int64_t to, from, n;
    Span(int64_t distance, int64_t C)
        : to(std::max<int64_t>(0, -distance)),
          from(std::max<int64_t>(0, distance)),
          n(std::max<int64_t>(0, C - to - from)) {}
  };
  struct Vectors {
    Matrix<A> qk;  // [2, C]
    Vectors(const Gate& of, const A* y) : qk(2, of.C_) {
      std::fill_n(qk[0], 2 * of.C_, A(0));
      for (int i = 0; i < 2; ++i)
        for (int64_t j = 0; j < of.K_; ++j) {
          const A tap = read<A>(i ? of.k_ : of.q_)[j];
          const Span span(j - of.K_ / 2, of.C_);
          for (int64_t c = 0; c < span.n; ++c) qk[i][span.to + c] += tap * y[span.from + c];
        }
    }
  };
  A of_head(const Vectors& v, int64_t c) const {
    return 1 / (1 + std::exp(-scale_ * dot(D_, v.qk[0] + c, v.qk[1] + c)));
  }
};

}  // namespace cpu
}  // namespace dla
