// The gate of layer attention, one number for each head of D channels: sig(q . k / sqrt(D)), where q and k are
// filters over the channels of y; and its gradients. The y of a sample is read from global memory, since a head, and
// a filter even more so, may reach into the channels of other blocks.
#pragma once

#include "device.h"
#include "light_step_args.h"

namespace dla {
namespace cuda {

// A row of C channels of one sample, zeros beyond them, and filters over it.
template <class A>
struct Channels {
  const A* row;
  int C;

  DLA_DEVICE A operator[](int c) const { return c >= 0 && c < C ? row[c] : A(0); }
  DLA_DEVICE A filtered(const A* taps, int K, int c) const {
    A sum = A(0);
    for (int j = 0; j < K; ++j) sum = fma(taps[j], (*this)[c + j - K / 2], sum);
    return sum;
  }
  // What a gradient of the filtered row is to the row.
  DLA_DEVICE A unfiltered(const A* taps, int K, int c) const {
    A sum = A(0);
    for (int j = 0; j < K; ++j) sum = fma(taps[j], (*this)[c - j + K / 2], sum);
    return sum;
  }
};

// f(n, sum over i < D of term(n, i), lane, lanes) for n in [begin, end), in a few lanes each.
template <class A, class Term, class F>
DLA_DEVICE void sums_of_heads(int begin, int end, int D, Term term, F f) {
  const int lanes = power_of_two(D, kWarp), lane = thread_index() % lanes;
  const int group = thread_index() / lanes, groups = num_threads() / lanes;
  for (int n0 = begin; n0 < end; n0 += groups) {  // all threads take every turn: the shuffles need them
    const int n = at_most(n0 + group, end - 1);
    A sum = A(0);
    for (int i = lane; i < D; i += lanes) sum += term(n, i);
    sum = sum_lanes(sum, lanes);
    if (n0 + group < end) f(n, sum, lane, lanes);
  }
}

// The gradients of two filters, dtaps [2, K], as far as they come from channels [begin, end): dq_row(c), dk_row(c) are
// those of what they made of y.
template <class A, class DqRow, class DkRow>
DLA_DEVICE void tap_gradients(const Channels<A>& y, int K, int begin, int end, DqRow dq_row, DkRow dk_row, A* dtaps) {
  const int lane = thread_index() % kWarp, warp = thread_index() / kWarp;
  for (int n0 = 0; n0 < 2 * K; n0 += num_threads() / kWarp) {  // all threads take every turn: the shuffles need them
    const int n = at_most(n0 + warp, 2 * K - 1), j = n % K;
    A sum = A(0);
    for (int c = begin + lane; c < end; c += kWarp) sum = fma(n < K ? dq_row(c) : dk_row(c), y[c + j - K / 2], sum);
    sum = sum_lanes(sum, kWarp);
    if (lane == 0 && n0 + warp < 2 * K) dtaps[n] = sum;
  }
}

template <class A>
class Attention {
 public:
  // y [C] of one sample; the block's channels are c0 .. c0 + cs.
  DLA_DEVICE Attention(const LightFilters<A>& filters, int64_t C, const A* y, int64_t c0, int cs)
      : filters_(filters), D_(int(C) / filters.heads), y_{y, int(C)}, c0_(int(c0)), end_(int(c0) + cs) {}

  // Of the block's channels: gate [cs].
  DLA_DEVICE void gates(A* gate) const {
    sums_of_heads<A>(
        c0_ / D_, (end_ - 1) / D_ + 1, D_, [&](int g, int i) { return q(g * D_ + i) * k(g * D_ + i); },
        [&](int g, A sum, int lane, int lanes) {
          const A of_head = sigmoid(sum * scale());
          const int first = g * D_ > c0_ ? g * D_ : c0_, end = at_most((g + 1) * D_, end_);
          for (int c = first + lane; c < end; c += lanes) gate[c - c0_] = of_head;
        });
  }

  // The gradient of each q . k that begins among the block's channels, from that of the gate of every channel.
  DLA_DEVICE void score_gradients(const A* gate, const A* dgates, A* dscores) const {
    sums_of_heads<A>((c0_ + D_ - 1) / D_, (end_ + D_ - 1) / D_, D_, [&](int g, int i) { return dgates[g * D_ + i]; },
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
      if (from < 0 || from >= y_.C) continue;
      sum = fma(dscores[from / D_], fma(filters_.q[j], k(from), filters_.k[j] * q(from)), sum);
    }
    return sum;
  }
  // Those of the filters, as far as they come from the block's channels: dtaps [2, K].
  DLA_DEVICE void filter_gradients(const A* dscores, A* dtaps) const {
    tap_gradients<A>(
        y_, filters_.K, c0_, end_, [&](int c) { return dscores[c / D_] * k(c); },
        [&](int c) { return dscores[c / D_] * q(c); }, dtaps);
  }

 private:
  const LightFilters<A>& filters_;
  const int D_;
  const Channels<A> y_;
  const int c0_, end_;

  DLA_DEVICE A scale() const { return inverse_root(A(D_)); }
  DLA_DEVICE A q(int c) const { return y_.filtered(filters_.q, filters_.K, c); }
  DLA_DEVICE A k(int c) const { return y_.filtered(filters_.k, filters_.K, c); }
};

}  // namespace cuda
}  // namespace dla
