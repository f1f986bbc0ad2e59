// attend: what a layer has of each of M before it and of itself, coef = softmax(q . k / sqrt(D)) scale, after keys and
// scales were refreshed; and its gradients. A block takes one sample; none of it is a map.
#pragma once

#include "attend_args.h"
#include "heads.cuh"

namespace dla {
namespace cuda {

// One sample's row of what has rows for every layer.
template <class A>
struct AttendedSample {
  const Attended<A>& in;
  const int64_t b;
  const Channels<A> y;
  const int M, D;
  A* const shares;  // [M + 1, heads]

  DLA_DEVICE AttendedSample(const Attended<A>& in, int64_t b)
      : in(in),
        b(b),
        y{in.y + b * in.C, int(in.C)},
        M(int(in.M)),
        D(int(in.C) / in.heads),
        shares(in.shares + b * rows()) {}

  DLA_DEVICE int rows() const { return (int(in.M) + 1) * in.heads; }  // of (layer, head)
  DLA_DEVICE int64_t at(int64_t row, int c) const { return (row * in.B + b) * in.C + c; }
  DLA_DEVICE A root() const { return inverse_root(A(D)); }
  DLA_DEVICE A refresh(int64_t row, int c) const { return in.d ? in.d[at(row, c)] : A(1); }
  DLA_DEVICE A query(int c) const { return y.filtered(in.q, in.K, c); }
  DLA_DEVICE A key(int m, int c) const { return m < M ? in.keys[at(m, c)] * refresh(m, c) : y.filtered(in.k, in.K, c); }
  DLA_DEVICE A scale(int m, int c) const { return m < M ? in.scale[at(m, c)] * refresh(M + m, c) : A(1); }

  // Fills shares. Barriers: these are known on return, and so is all that was written before.
  DLA_DEVICE void softmax() const {
    sums_of_heads<A>(
        0, rows(), D,
        [&](int n, int i) {
          const int c = n % in.heads * D + i;
          return query(c) * key(n / in.heads, c);
        },
        [&](int n, A sum, int lane, int) {
          if (lane == 0) shares[n] = sum * root();
        });
    block_barrier();
    for (int g = thread_index(); g < in.heads; g += num_threads()) {
      A largest = shares[g], sum = A(0);
      for (int n = g; n < rows(); n += in.heads)
        largest = shares[n] <= largest ? largest : shares[n];  // NaN is largest
      for (int n = g; n < rows(); n += in.heads) sum += shares[n] = exponential(shares[n] - largest);
      for (int n = g; n < rows(); n += in.heads) shares[n] /= sum;
    }
    block_barrier();
  }
};

template <class A>
DLA_KERNEL(attend_kernel, A, AttendArgs<A>) {
  const AttendedSample<A> sample(args.in, block_index());
  sample.softmax();
  const int C = sample.y.C;
  for (int n = thread_index(); n < (sample.M + 1) * C; n += num_threads()) {
    const int m = n / C, c = n % C;
    const int64_t at = sample.at(m, c);
    const A scale = sample.scale(m, c);
    args.keys[at] = sample.key(m, c), args.scale[at] = scale;
    args.coef[at] = sample.shares[m * args.in.heads + c / sample.D] * scale;
  }
}

template <class A>
DLA_KERNEL(attend_bwd_kernel, A, AttendBwdArgs<A>) {
  const AttendedSample<A> sample(args.in, block_index());
  const int heads = args.in.heads, M = sample.M, C = sample.y.C, K = args.in.K;
  A* const dshares = args.dshares + sample.b * sample.rows();
  A *const dq_row = args.dqk_rows + sample.b * 2 * C, *const dk_row = dq_row + C;
  sums_of_heads<A>(
      0, sample.rows(), sample.D,
      [&](int n, int i) {
        const int m = n / heads, c = n % heads * sample.D + i;
        return args.dcoef[sample.at(m, c)] * sample.scale(m, c);
      },
      [&](int n, A sum, int lane, int) {
        if (lane == 0) dshares[n] = sum;
      });
  sample.softmax();                                              // which makes dshares known too
  for (int g = thread_index(); g < heads; g += num_threads()) {  // from those of shares to those of scores
    A mean = A(0);
    for (int n = g; n < sample.rows(); n += heads) mean = fma(sample.shares[n], dshares[n], mean);
    for (int n = g; n < sample.rows(); n += heads) dshares[n] = sample.shares[n] * (dshares[n] - mean) * sample.root();
  }
  block_barrier();
  for (int c = thread_index(); c < C; c += num_threads()) {
    const A query = sample.query(c);
    A dquery = A(0);
    for (int m = 0; m <= M; ++m) {
      const int n = m * heads + c / sample.D;
      const int64_t at = sample.at(m, c);
      dquery = fma(dshares[n], sample.key(m, c), dquery);
      const A dkey = fma(dshares[n], query, args.dkeys[at]);
      if (m == M) {
        dk_row[c] = dkey;
        break;
      }
      const A dscale = fma(args.dcoef[at], sample.shares[n], args.dscale[at]);
      args.dpast_keys[at] = dkey * sample.refresh(m, c);
      args.dpast_scale[at] = dscale * sample.refresh(M + m, c);
      if (args.dpast) {
        args.dpast[at] = dkey * args.in.keys[at];
        args.dpast[sample.at(M + m, c)] = dscale * args.in.scale[at];
      }
    }
    dq_row[c] = dquery;
  }
  block_barrier();
  const Channels<A> dqueries{dq_row, C}, dkeys{dk_row, C};
  for (int c = thread_index(); c < C; c += num_threads())
    args.dy[sample.b * C + c] = dqueries.unfiltered(args.in.q, K, c) + dkeys.unfiltered(args.in.k, K, c);
  tap_gradients(
      sample.y, K, 0, C, [&](int c) { return dq_row[c]; }, [&](int c) { return dk_row[c]; },
      args.dtaps + sample.b * 2 * K);
}

}  // namespace cuda
}  // namespace dla
