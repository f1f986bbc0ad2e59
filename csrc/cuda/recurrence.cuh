// The cell over one tile of samples, as one group of blocks runs it: what is ahead of the scan, the scan, the refresh.
// All that a group has to exchange is the bottleneck: partial sums of W1h h + p, R numbers a sample and layer.
#pragma once

#include "steps.cuh"

namespace dla {
namespace cuda {

template <class A>
class Recurrence : public Tile<A> {
  using Base = Tile<A>;

 public:
  using Base::args, Base::T, Base::R, Base::NG, Base::B, Base::C, Base::rank, Base::ranks, Base::cs, Base::nb;
  using Base::at, Base::of_channel, Base::of_unit, Base::of_gate, Base::layer_of, Base::sample_of;
  using Base::bottleneck, Base::buffer, Base::gates, Base::rows, Base::scanned, Base::w1_rows, Base::for_each;
  using Base::w1h, Base::w1y, Base::w2h, Base::w2y;

  DLA_DEVICE explicit Recurrence(const CellArgs<A>& args) : Base(args), steps_(*this) {}

  // ---- the exchange ----

  // Where the partial sums of the next exchange go, [M, R].
  DLA_DEVICE A* partials() const {
    return buffer(kExchange) + parity_ * args.plan.chunk_layers * args.plan.samples_per_tile * R;
  }
  // f(m, r, sum over the group's blocks, in their order), in every block alike. Two buffers take turns, so that
  // one barrier is enough: who writes a buffer again has passed the next one, and so has everyone who read it.
  // Barriers, of the group: called with partials() just written; on return what f wrote is known.
  template <class F>
  DLA_DEVICE void exchange(int M, F f) {
    A* const mine = partials();
    parity_ ^= 1;
    group_barrier();
    for_each(M, R, [&](int m, int r) {
      if (ranks == 1) return f(m, r, mine[of_unit(m, r)]);
      constexpr int kAhead = 4;  // blocks that are asked before the first answer is added
      A sum = A(0);
      for (int first = 0; first < ranks; first += kAhead) {
        A parts[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i)
          if (first + i < ranks) parts[i] = peer(mine, first + i)[of_unit(m, r)];
#pragma unroll
        for (int i = 0; i < kAhead; ++i)
          if (first + i < ranks) sum += parts[i];
      }
      f(m, r, sum);
    });
    block_barrier();
  }
  // f(m0, M) for as many rows of layers [begin, end) as can be exchanged at once, whole layers; backwards if so
  // wanted.
  template <class F>
  DLA_DEVICE void for_chunks(int begin, int end, bool backwards, F f) const {
    const int layers = args.plan.chunk_layers;
    const int last = begin + Divisor(layers).under(end > begin ? end - begin - 1 : 0) * layers;
    for (int t = backwards ? last : begin; begin <= t && t < end; t += backwards ? -layers : layers)
      f(t * nb, at_most(layers, end - t) * nb);
  }

  // ---- what y alone decides ----

  // From kY: kP, this block's part of p, or kQ. Keeps uy [rows, R] where it is wanted. Barriers: kY is known when it
  // is called; on return kP, kQ, uy and the copies of weights are.
  DLA_DEVICE void hoist(A* uy_kept) {
    const A* const y = buffer(kY);
    const bool joint = args.projection == Projection::kJoint;
    for_chunks(0, T, false, [&](int m0, int M) {
      const A* x = y + m0 * cs;
      if (bottleneck()) {
        A* const out = joint ? buffer(kP) + m0 * R : partials();
        dots(M, R, cs, x, cs, w1y(), [&](int m, int r, A sum) { out[of_unit(m, r)] = sum; });
        if (joint) return;
        A* const uy = uy_kept ? uy_kept + m0 * R : buffer(kU);
        exchange(M, [&](int m, int r, A sum) { uy[of_unit(m, r)] = relu(sum + args.b1y[r]); });
        x = uy;
      }
      A* const q = buffer(kQ) + m0 * gates();
      const int K = bottleneck() ? R : cs;
      dots(M, gates(), K, x, K, bottleneck() ? w2y() : w1y(),
           [&](int m, int n, A sum) { q[m * gates() + n] = sum + buffer(kBias)[n]; });
      block_barrier();
    });
    await_copies();
    block_barrier();
  }

  // ---- gates ----

  // Row m's part of p, which this block adds to its part of W1h h.
  DLA_DEVICE A p_part(int m, int r) const {
    return args.projection == Projection::kJoint ? buffer(kP)[of_unit(m, r)] : A(0);
  }
  DLA_DEVICE A relu_p(int r, A sum) const {  // u from the whole sum
    return relu(args.projection == Projection::kSplit ? sum + args.b1h[r] : sum);
  }
  // W1h h for the state h [nb, cs] that all layers share, once: then gates_of(..., h = nullptr, ...) by chunks.
  // Barriers: h is known when it is called, kLastProduct on return.
  DLA_DEVICE void share_last(const A* h) const {
    A* const shared = buffer(kLastProduct);
    dots(nb, w1_rows(), cs, h, cs, w1h(), [&](int i, int n, A sum) { shared[i * w1_rows() + n] = sum; });
    block_barrier();
  }
  // a for rows m0 .. m0 + M, and u on the way: from h [M, cs], each row with its own, or from the shared one. u and
  // a hold just these rows. Barriers: h, or kLastProduct, and what hoist made are known, and u and a free, when it is
  // called; on return u and a are known.
  DLA_DEVICE void gates_of(int m0, int M, const A* h, A* u, A* a) {
    const A* const shared = buffer(kLastProduct);
    if (bottleneck()) {
      A* const part = partials();
      if (h)
        dots(M, R, cs, h, cs, w1h(), [&](int m, int r, A sum) { part[of_unit(m, r)] = sum + p_part(m0 + m, r); });
      else
        for_each(M, R, [&](int m, int r) {
          part[of_unit(m, r)] = shared[of_unit(sample_of(m0 + m), r)] + p_part(m0 + m, r);
        });
      exchange(M, [&](int m, int r, A sum) { u[of_unit(m, r)] = relu_p(r, sum); });
    }
    const auto q = [&](int m, int n) {
      return args.projection == Projection::kJoint ? buffer(kBias)[n] : buffer(kQ)[m * gates() + n];
    };
    if (bottleneck() || h) {
      const int K = bottleneck() ? R : cs;
      dots(M, gates(), K, bottleneck() ? u : h, K, bottleneck() ? w2h() : w1h(),
           [&](int m, int n, A sum) { a[m * gates() + n] = sum + q(m0 + m, n); });
    } else {
      for_each(M, gates(),
               [&](int m, int n) { a[m * gates() + n] = shared[sample_of(m0 + m) * gates() + n] + q(m0 + m, n); });
    }
    block_barrier();
  }
  template <class Rule>
  DLA_DEVICE void read_gates(const A* a, int m, int c, A* out) const {
#pragma unroll
    for (int g = 0; g < Rule::NG; ++g) out[g] = a[of_gate(m, g, c)];
  }

  // ---- forward ----

  // From kH, kC to the state after the scan's last layer; states_h and states_c are filled where they are saved.
  // Barriers: kH, kC and what hoist made are known when it is called; on return kH and kC are, and kKept is still read.
  DLA_DEVICE void scan(A* states_h, A* states_c) {
    if (args.plan.hot)
      with_rule(args.rule, [&](auto rule) { steps_.template forward<decltype(rule)>(*this, states_h); });
    else
      cold_scan(states_h);
    const A* const kept = buffer(kKept);
    A* const saved = args.saves_c ? states_c : states_h;
    for_each(scanned(), cs, [&](int m, int j) { saved[at(m, j)] = kept[of_channel(m, j)]; });
  }

  // From the state in kH, kC: f(m0, M, d [M, cs]) for chunks of rows, the last layers first, since these were
  // read last and are nearest. Barriers: kH, kC and what hoist made are known when it is called; so is d when f is,
  // and when f returns d may still be read.
  template <class F>
  DLA_DEVICE void refresh(F f) {
    const A *const h = buffer(kH), *const c = buffer(kC), *const a = buffer(kGates);
    A* const d = buffer(kD);
    share_last(h);
    for_chunks(args.refresh_begin, T, true, [&](int m0, int M) {
      gates_in_place(m0, M, nullptr);
      with_rule(args.rule, [&](auto rule) {
        using Rule = decltype(rule);
        for_each(M, cs, [&](int m, int j) {
          A gates[Rule::NG];
          read_gates<Rule>(a, m, j, gates);
          const int at_ij = of_channel(sample_of(m), j);  // chunks begin with a layer
          d[of_channel(m, j)] = Rule::output(Rule::step(gates, State<A>{h[at_ij], c[at_ij]}));
        });
      });
      block_barrier();
      f(m0, M, d);
      block_barrier();
    });
  }

 protected:
  Steps<A> steps_;

 private:
  int parity_ = 0;

  // From kH, or the shared state, to kU and kGates. Barriers: as gates_of.
  DLA_DEVICE void gates_in_place(int m0, int M, const A* h) {
    gates_of(m0, M, h, bottleneck() ? buffer(kU) : nullptr, buffer(kGates));
  }
  // The scan where a buffer of every step may lie anywhere. Barriers: as scan.
  DLA_DEVICE void cold_scan(A* states_h) {
    A *const h = buffer(kH), *const c = buffer(kC);
    const A* const a = buffer(kGates);
    A* const kept = buffer(kKept);  // A barrier would wait for writes to global memory at every step.
    for (int t = 0; t < args.scan_end; ++t) {
      gates_in_place(t * nb, nb, h);
      with_rule(args.rule, [&](auto rule) {
        using Rule = decltype(rule);
        for_each(nb, cs, [&](int i, int j) {
          A gates[Rule::NG];
          read_gates<Rule>(a, i, j, gates);
          const int at_ij = of_channel(i, j), m = t * nb + i;
          const State<A> s = Rule::step(gates, State<A>{h[at_ij], c[at_ij]});
          h[at_ij] = s.h, c[at_ij] = s.c;
          kept[of_channel(m, j)] = Rule::kSavesC ? s.c : s.h;
          if (Rule::kSavesC && Rule::kSavesH) states_h[at(m, j)] = s.h;
        });
      });
      block_barrier();
    }
  }
};

}  // namespace cuda
}  // namespace dla
