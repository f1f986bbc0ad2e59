// Gradients of the recurrence over one tile: refresh, then scan, then y. Gates are recomputed from y and the
// saved states. What the weight gradients need of every row goes to global memory; weight_gradients.cuh
// multiplies it. Docs: docs/backward.md.
#pragma once

#include "recurrence.cuh"

namespace dla {
namespace cuda {

template <class A>
class RecurrenceBwd : public Recurrence<A> {
  using Base = Recurrence<A>;

 public:
  using Base::B, Base::C, Base::NG, Base::R, Base::T, Base::args, Base::at, Base::at_sample, Base::b0;
  using Base::bottleneck, Base::buffer, Base::c0, Base::cs, Base::exchange, Base::for_chunks, Base::for_each;
  using Base::gates, Base::of_channel, Base::of_gate, Base::of_unit, Base::w1_rows, Base::nb, Base::partials,
      Base::rank, Base::ranks, Base::refreshed, Base::rows, Base::scanned;
  using Base::w1h, Base::w1y;
  using Base::w2h, Base::w2y;

  const RecurrenceGrads<A>& grads;

  DLA_DEVICE RecurrenceBwd(const CellArgs<A>& args, const RecurrenceGrads<A>& grads) : Base(args), grads(grads) {}

  // From kY: all that follows needs of y; and gradients of the state that are still zero. Barriers: kY is known when
  // it is called; on return what hoist made, kDH and kDC are.
  DLA_DEVICE void begin() {
    A* const uy = this->y_apart() ? buffer(kUY) : nullptr;
    this->hoist(uy);
    if (uy) keep(rows(), 0, uy, grads.factors.uy);
    A *const dh = buffer(kDH), *const dc = buffer(kDC);
    for_each(nb, cs, [&](int i, int j) { dh[of_channel(i, j)] = dc[of_channel(i, j)] = A(0); });
    block_barrier();
  }

  // The state after the scan's last layer, to kH, kC. Barriers: these are free when it is called, and known on return.
  DLA_DEVICE void load_last() const {
    A *const h = buffer(kH), *const c = buffer(kC);
    with_rule(args.rule, [&](auto rule) {
      using Rule = decltype(rule);
      for_each(nb, cs, [&](int i, int j) {
        const int64_t last = at(scanned() - nb + i, j);
        c[of_channel(i, j)] = Rule::kSavesC ? grads.states_c[last] : A(0);
        h[of_channel(i, j)] = Rule::kSavesH ? grads.states_h[last] : Rule::feed(grads.states_c[last]);
      });
    });
    block_barrier();
  }

  // From kDD and the state in kH, kC: da, and the gradient of that state in kDH, kDC; d itself to kD. Barriers: all of
  // these but kD, and what hoist made, are known when it is called; on return kDH, kDC, kDP, kDQ and kD are.
  DLA_DEVICE void refresh() {
    A *const h = buffer(kH), *const c = buffer(kC), *const dc = buffer(kDC), *const a = buffer(kGates);
    A *const dd = buffer(kDD), *const d = buffer(kD);
    A* const da_refresh = a;  // kDaRefresh: a row is read before it is written
    const Factors<A>& factors = grads.factors;
    this->share_last(h);
    for_each(nb, cs, [&](int i, int j) { factors.h_last[at_sample(i, j)] = h[of_channel(i, j)]; });
    for_chunks(args.refresh_begin, T, false, [&](int m0, int M) {
      A* const u = bottleneck() ? buffer(kURefresh) + m0 * R : nullptr;
      this->gates_of(m0, M, nullptr, u, a);
      with_rule(args.rule, [&](auto rule) {
        using Rule = decltype(rule);
        for_each(nb, cs, [&](int i, int j) {  // a thread sums over the layers, so dc has one writer
          const State<A> s{h[of_channel(i, j)], c[of_channel(i, j)]};
          for (int m = i; m < M; m += nb) {
            A of[Rule::NG], da[Rule::NG];
            this->template read_gates<Rule>(a, m, j, of);
            d[of_channel(m0 + m, j)] = Rule::output(Rule::step(of, s));
            dc[of_channel(i, j)] += Rule::output_bwd(of, s, dd[of_channel(m0 + m, j)], da);
            write_gates<Rule>(da_refresh, m, j, da);
            keep_gates<Rule>(m0 + m, j, da, factors.da_refresh, /*add=*/false);
          }
        });
      });
      block_barrier();
      if (bottleneck()) {
        A* const ds = buffer(kDP) + m0 * R;
        through_bottleneck(M, da_refresh, u, ds);
        keep(M, m0, u, factors.u_refresh);
        keep(M, m0, ds, factors.ds_refresh);
      }
    });
    // W1h h was shared by the layers: so is its gradient.
    const int K = w1_rows();
    const A* const each = bottleneck() ? buffer(kDP) : buffer(kDQ);
    A* const sum = buffer(kLastSum);
    for_each(nb, K, [&](int i, int k) {
      A total = A(0);
      for (int m = refreshed() + i; m < rows(); m += nb) total += each[m * K + k];
      sum[i * K + k] = total;
      if (rank == (i & (ranks - 1))) factors.last_sum[(b0 + i) * K + k] = total;
    });
    block_barrier();
    back_to_h(sum);
  }

  // From kDH, kDC and the gradients of all states to the gradient of the state before layer 1. Barriers: kDH, kDC, kDP,
  // kDQ and what hoist made are known when it is called; on return kDH and kDC are, kDP and kDQ are still written.
  DLA_DEVICE void scan() {
    A *const before = buffer(kHBefore), *const a = buffer(kGates);
    const Factors<A>& factors = grads.factors;
    with_rule(args.rule, [&](auto rule) {
      using Rule = decltype(rule);
      for_each(scanned(), cs, [&](int m, int j) {
        const A h = m < nb          ? this->template start_h<Rule>(at_sample(m, j))
                    : Rule::kSavesH ? grads.states_h[at(m - nb, j)]
                                    : Rule::feed(grads.states_c[at(m - nb, j)]);
        before[of_channel(m, j)] = factors.h[at(m, j)] = h;
      });
    });
    block_barrier();
    for_chunks(0, args.scan_end, false, [&](int m0, int M) {
      A* const u = bottleneck() ? buffer(kUScan) + m0 * R : nullptr;
      this->gates_of(m0, M, before + m0 * cs, u, a + m0 * gates());
    });
    if (bottleneck()) keep(scanned(), 0, buffer(kUScan), factors.u_scan);
    A *const da_scan = buffer(kDaScan), *const ds_scan = bottleneck() ? buffer(kDsScan) : nullptr;
    if (args.plan.hot)
      hot_scan();
    else
      cold_scan();
    if (bottleneck()) {
      keep(scanned(), 0, ds_scan, factors.ds_scan);
      A* const dp = buffer(kDP);
      for_each(scanned(), R, [&](int m, int r) {
        dp[of_unit(m, r)] = m >= refreshed() ? dp[of_unit(m, r)] + ds_scan[of_unit(m, r)] : ds_scan[of_unit(m, r)];
      });
    }
    with_rule(args.rule, [&](auto rule) {
      using Rule = decltype(rule);
      for_each(scanned(), cs, [&](int m, int j) {
        A da[Rule::NG];
        this->template read_gates<Rule>(da_scan, m, j, da);
        keep_gates<Rule>(m, j, da, factors.da_scan, /*add=*/m >= refreshed());
      });
    });
  }

  // kDH, kDC to the gradient of the state that was given, in the form in which it was.
  DLA_DEVICE void keep_start() const {
    const A *const dh = buffer(kDH), *const dc = buffer(kDC);
    with_rule(args.rule, [&](auto rule) {
      using Rule = decltype(rule);
      for_each(nb, cs, [&](int i, int j) {
        const int64_t at = at_sample(i, j);
        const int at_ij = i * cs + j;
        if (grads.dh0) grads.dh0[at] = dh[at_ij];
        if (grads.dc0) grads.dc0[at] = args.h0 ? dc[at_ij] : dc[at_ij] + Rule::feed_bwd(args.c0[at], dh[at_ij]);
      });
    });
  }

  // f(m, the gradient of a y of row m) to kDY. Barriers: called at any time after the scan; on return kDY is known.
  template <class F>
  DLA_DEVICE void finish(F f) {
    A *const dy = buffer(kDY), *const scratch = buffer(kScratch);
    block_barrier();
    for_chunks(0, T, false, [&](int m0, int M) {
      const A* ds = (bottleneck() ? buffer(kDP) : buffer(kDQ)) + m0 * w1_rows();
      if (this->y_apart()) {
        A *const part = partials(), *const dsy = buffer(kU);
        const A *const dq = buffer(kDQ) + m0 * gates(), *const uy = buffer(kUY) + m0 * R;
        axpys(M, R, gates(), dq, gates(), w2y(), scratch, [&](int m, int r, A sum) { part[of_unit(m, r)] = sum; });
        exchange(M, [&](int m, int r, A sum) { dsy[of_unit(m, r)] = relu_grad(uy[of_unit(m, r)], sum); });
        keep(M, m0, dsy, grads.factors.dsy);
        ds = dsy;
      }
      axpys(M, cs, w1_rows(), ds, w1_rows(), w1y(), scratch,
            [&](int m, int j, A sum) { dy[of_channel(m0 + m, j)] = f(m0 + m, sum); });
      block_barrier();
    });
    block_barrier();
  }

  DLA_DEVICE void finish() {
    finish([](int, A dy) { return dy; });
  }

 private:
  // The steps of scan(): what they leave behind stays, in the rows of what they read, till all are done: a barrier
  // would wait for writes to global memory at every step. Barriers, of the group: as Steps::backward.
  DLA_DEVICE void cold_scan() {
    const A* const before = buffer(kHBefore);
    A *const a = buffer(kGates), *const dh = buffer(kDH), *const dc = buffer(kDC);
    for (int t = args.scan_end - 1; t >= 0; --t) {
      const int m0 = t * nb;
      A *const gates_t = a + m0 * gates(), *const da_t = gates_t;  // a row is read before it is written
      with_rule(args.rule, [&](auto rule) {
        using Rule = decltype(rule);
        for_each(nb, cs, [&](int i, int j) {
          const int at_ij = of_channel(i, j), m = m0 + i;
          const State<A> s{Rule::kSavesC ? A(0) : before[of_channel(m, j)], c_before<Rule>(m, j)};
          State<A> ds{dh[at_ij], dc[at_ij]};
          if (grads.dstates_h) ds.h += grads.dstates_h[at(m, j)];
          if (grads.dstates_c) ds.c += grads.dstates_c[at(m, j)];
          A of[Rule::NG], da[Rule::NG];
          this->template read_gates<Rule>(gates_t, i, j, of);
          dc[at_ij] = Rule::step_bwd(of, s, ds, da);
          write_gates<Rule>(da_t, i, j, da);
        });
      });
      block_barrier();
      A* const ds = bottleneck() ? buffer(kDsScan) + m0 * R : da_t;
      if (bottleneck()) through_bottleneck(nb, da_t, buffer(kUScan) + m0 * R, ds);
      back_to_h(ds);
    }
  }
  // The same, where what they need lies in shared memory. What comes from global memory is loaded ahead of all, to
  // buffers that lie near as far as there is room. Barriers: as cold_scan.
  DLA_DEVICE void hot_scan() {
    A *const before = buffer(kCBefore), *const dstates_h = buffer(kDStatesH), *const dstates_c = buffer(kDStatesC);
    with_rule(args.rule, [&](auto rule) {
      using Rule = decltype(rule);
      for_each(scanned(), cs, [&](int m, int j) {
        const int at_m = of_channel(m, j);
        if (Rule::kSavesC) before[at_m] = c_before<Rule>(m, j);
        if (grads.dstates_h) dstates_h[at_m] = grads.dstates_h[at(m, j)];
        if (grads.dstates_c) dstates_c[at_m] = grads.dstates_c[at(m, j)];
      });
      block_barrier();
      this->steps_.template backward<Rule>(*this, grads.dstates_h, grads.dstates_c);
    });
  }
  // The memory before row m.
  template <class Rule>
  DLA_DEVICE A c_before(int m, int j) const {
    if (!Rule::kSavesC) return A(0);
    return m < nb ? this->start_c(at_sample(m, j)) : grads.states_c[at(m - nb, j)];
  }
  template <class Rule>
  DLA_DEVICE void write_gates(A* a, int m, int c, const A* da) const {
#pragma unroll
    for (int g = 0; g < Rule::NG; ++g) a[of_gate(m, g, c)] = da[g];
  }
  // Of row m of the tile: the factor, and dq where a projection needs the sum over scan and refresh.
  template <class Rule>
  DLA_DEVICE void keep_gates(int m, int c, const A* da, A* factor, bool add) const {
    A* const dq = args.projection == Projection::kJoint ? nullptr : buffer(kDQ) + m * gates() + c;
    const int64_t row = (at(m, c) - c0 - c) * NG + c0 + c;
#pragma unroll
    for (int g = 0; g < Rule::NG; ++g) {
      factor[row + g * C] = da[g];
      if (dq) dq[g * cs] = add ? dq[g * cs] + da[g] : da[g];
    }
  }
  // M rows [M, R], alike in all blocks, into a factor: the blocks take turns.
  DLA_DEVICE void keep(int M, int m0, const A* from, A* factor) const {
    for_each(M, R, [&](int m, int r) {
      const int row = m0 + m;
      if ((row & (ranks - 1)) == rank)
        factor[(int64_t(this->layer_of(row)) * B + b0 + this->sample_of(row)) * R + r] = from[of_unit(m, r)];
    });
  }
  // ds = (W2h^T da) where u > 0, in every block of the group. Barriers, of the group: da and u are
  // known when it is called, ds on return.
  DLA_DEVICE void through_bottleneck(int M, const A* da, const A* u, A* ds) {
    A* const part = partials();
    axpys(M, R, gates(), da, gates(), w2h(), buffer(kScratch), [&](int m, int r, A sum) { part[of_unit(m, r)] = sum; });
    exchange(M, [&](int m, int r, A sum) { ds[of_unit(m, r)] = relu_grad(u[of_unit(m, r)], sum); });
  }
  // dh from ds [nb, R]; dense: from da. Barriers: ds is known, and kDH free, when it is called; on return kDH is known.
  DLA_DEVICE void back_to_h(const A* ds) const {
    A* const dh = buffer(kDH);
    axpys(nb, cs, w1_rows(), ds, w1_rows(), w1h(), buffer(kScratch),
          [&](int i, int j, A sum) { dh[of_channel(i, j)] = sum; });
    block_barrier();
  }
};

}  // namespace cuda
}  // namespace dla
