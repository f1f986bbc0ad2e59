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
  const Tensor held = as_contiguous(filter);
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
  const Rows<A> of_channel{write<A>(filter), 9};
  for (int64_t c = 0; c < C; ++c)
    for (int k = 0; k < 9; ++k) of_channel[c][k] = taps[k][c];
  return filter;
}

constexpr int kCentre = 4;

// A filter of K taps over the channels of one sample, zeros beyond them.
template <class A>
struct ChannelFilter {
  const Tensor held;
  const A* const taps;
  const int64_t K, C;

  ChannelFilter(const Tensor& taps_in, int64_t C)
      : held(as_contiguous(taps_in)), taps(read<A>(held)), K(taps_in.size(0)), C(C) {}

  // out [C] from y [C]
  void operator()(const A* y, A* out) const {
    std::fill_n(out, C, A(0));
    for (int64_t j = 0; j < K; ++j) {
      const Span span(j - K / 2, C);
      for (int64_t c = 0; c < span.n; ++c) out[span.to + c] += taps[j] * y[span.from + c];
    }
  }
  // From dout [C]: adds to dy [C]; the gradient of the taps, this sample's part, goes to dtaps [K].
  void backward(const A* y, const A* dout, A* dy, A* dtaps) const {
    for (int64_t j = 0; j < K; ++j) {
      const Span span(j - K / 2, C);
      dtaps[j] = dot(span.n, dout + span.to, y + span.from);
      for (int64_t c = 0; c < span.n; ++c) dy[span.from + c] += taps[j] * dout[span.to + c];
    }
  }

 private:
  // The channels `to` whose neighbour at this distance, `from`, there is.
  struct Span {
    int64_t to, from, n;
    Span(int64_t distance, int64_t C)
        : to(std::max<int64_t>(0, -distance)),
          from(std::max<int64_t>(0, distance)),
          n(std::max<int64_t>(0, C - to - from)) {}
  };
};

// The sum over samples of their parts [B, K], in their order.
template <class A>
Tensor sum_of_parts(const Matrix<A>& parts, int64_t B, int64_t K) {
  const Tensor sum = empty<A>({K});
  for (int64_t j = 0; j < K; ++j) {
    A total = 0;
    for (int64_t b = 0; b < B; ++b) total += parts[b][j];
    write<A>(sum)[j] = total;
  }
  return sum;
}

// The gate of one layer, sig(q . k / sqrt(D)) per head, where q and k are filters over the channels of y.
template <class A>
class Gate {
 public:
  Gate(const Tensor& q, const Tensor& k, int64_t C, int64_t heads)
      : q_(q, C), k_(k, C), C_(C), D_(C / heads), scale_(1 / std::sqrt(A(D_))) {}

  // gate [C], one value within a head, from y [C]
  void operator()(const A* y, A* gate) const {
    const Matrix<A> qk = filtered(y);
    for (int64_t c = 0; c < C_; c += D_) std::fill_n(gate + c, D_, of_head(qk, c));
  }
  // From dgate [C]: adds to dy [C]; this sample's gradients of q and k go to dq, dk [K].
  void backward(const A* y, const A* dgate, A* dy, A* dq, A* dk) const {
    const Matrix<A> qk = filtered(y), d(2, C_);
    for (int64_t c = 0; c < C_; c += D_) {
      const A gate = of_head(qk, c);
      A sum = 0;
      for (int64_t i = c; i < c + D_; ++i) sum += dgate[i];
      const A dscore = sum * gate * (1 - gate) * scale_;
      for (int64_t i = c; i < c + D_; ++i) d[0][i] = dscore * qk[1][i], d[1][i] = dscore * qk[0][i];
    }
    q_.backward(y, d[0], dy, dq);
    k_.backward(y, d[1], dy, dk);
  }

 private:
  const ChannelFilter<A> q_, k_;
  const int64_t C_, D_;
  const A scale_;

  Matrix<A> filtered(const A* y) const {
    Matrix<A> qk(2, C_);
    q_(y, qk[0]), k_(y, qk[1]);
    return qk;
  }
  A of_head(const Matrix<A>& qk, int64_t c) const {
    return 1 / (1 + std::exp(-scale_ * dot(D_, qk[0] + c, qk[1] + c)));
  }
};

}  // namespace cpu
}  // namespace dla
