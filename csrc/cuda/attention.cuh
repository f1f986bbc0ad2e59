// The gate of layer attention, one number for each head of D channels: sig(q . k / sqrt(D)), where q and k are
// filters over the channels of y; and its gradients. The y of a sample is read from global memory, since a head, and
// a filter even more so, may reach into the channels of other blocks.
#pragma once

#include "args.h"
#include "device.h"

namespace dla {
namespace cuda {

template <class A>
class Attention {
 public:
  // y [C] of one sample; the block's channels are c0 .. c0 + cs.
  DLA_DEVICE Attention(const LightFilters<A>& filters, int64_t C, const A* y, int64_t c0, int cs)
      : filters_(filters), C_(int(C)), D_(int(C) / filters.heads), y_(y), c0_(int(c0)), end_(int(c0) + cs) {}

  // Of the block's channels: gate [cs].
  DLA_DEVICE void gates(A* gate) const {
    over_heads(
        c0_ / D_, (end_ - 1) / D_ + 1, [&](int c) { return q(c) * k(c); },
        [&](int g, A sum, int lane, int lanes) {
          const A of_head = sigmoid(sum * scale());
          const int first = g * D_ > c0_ ? g * D_ : c0_, end = at_most((g + 1) * D_, end_);
          for (int c = first + lane; c < end; c += lanes) gate[c - c0_] = of_head;
        });
  }

  // The gradient of each q . k that begins among the block's channels, from that of the gate of every channel.
  DLA_DEVICE void score_gradients(const A* gate, const A* dgates, A* dscores) const {
    over_heads((c0_ + D_ - 1) / D_, (end_ + D_ - 1) / D_, [&](int c) { return dgates[c]; },
               [&](int g, A dgate, int lane, int) {
                 const A of_head = gate[g * D_ - c0_];
                 if (lane == 0) dscores[g] = dgate * of_head * (A(1) - of_head) * scale();
               });
  }
  // The gradient of y at channel c.
  DLA_DEVICE A y_gradient(const A* dscores, int c) const {
    A sum = A(0);
    for (int j = 0; j < filters_.K; ++j) {
      const int from = c - j + filters_.K / 2;
      if (from < 0 || from >= C_) continue;
      sum = fma(dscores[from / D_], fma(filters_.q[j], k(from), filters_.k[j] * q(from)), sum);
    }
    return sum;
  }
  // Those of the filters, as far as they come from the block's channels: dtaps [2, K].
  DLA_DEVICE void tap_gradients(const A* dscores, A* dtaps) const {
    const int K = filters_.K, lane = thread_index() % kWarp, warp = thread_index() / kWarp;
    for (int n0 = 0; n0 < 2 * K; n0 += num_threads() / kWarp) {  // all threads take every turn: the shuffles need them
      const int n = at_most(n0 + warp, 2 * K - 1), j = n % K;
      A sum = A(0);
      for (int c = c0_ + lane; c < end_; c += kWarp)
        sum = fma(dscores[c / D_] * (n < K ? k(c) : q(c)), y(c + j - K / 2), sum);
      sum = sum_lanes(sum, kWarp);
      if (lane == 0 && n0 + warp < 2 * K) dtaps[n] = sum;
    }
  }

 private:
  const LightFilters<A>& filters_;
  const int C_, D_;
  const A* const y_;
  const int c0_, end_;

  DLA_DEVICE A scale() const { return inverse_root(A(D_)); }
  DLA_DEVICE A y(int c) const { return c >= 0 && c < C_ ? y_[c] : A(0); }
  DLA_DEVICE A filtered(const A* taps, int c) const {
    A sum = A(0);
    for (int j = 0; j < filters_.K; ++j) sum = fma(taps[j], y(c + j - filters_.K / 2), sum);
    return sum;
  }
  DLA_DEVICE A q(int c) const { return filtered(filters_.q, c); }
  DLA_DEVICE A k(int c) const { return filtered(filters_.k, c); }

  // f(g, sum over the channels c of head g of term(c), lane, lanes) for heads [begin, end), in a few lanes each.
  template <class Term, class F>
  DLA_DEVICE void over_heads(int begin, int end, Term term, F f) const {
    const int lanes = power_of_two(D_, kWarp), lane = thread_index() % lanes;
    const int group = thread_index() / lanes, groups = num_threads() / lanes;
    for (int g0 = begin; g0 < end; g0 += groups) {  // all threads take every turn: the shuffles need them
      const int g = at_most(g0 + group, end - 1);
      A sum = A(0);
      for (int i = lane; i < D_; i += lanes) sum += term(g * D_ + i);
      sum = sum_lanes(sum, lanes);
      if (g0 + group < end) f(g, sum, lane, lanes);
    }
  }
};

}  // namespace cuda
}  // namespace dla
