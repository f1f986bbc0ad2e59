// The cell over one tile of samples, as one group of blocks runs it. Each block owns `cs` neighbouring
// channels from c0 on: their y, state and gates, and with them a column slice of W1 and a row slice of W2. All
// that a group has to exchange is the bottleneck: partial sums of W1h h + p, R numbers a sample and layer.
// In a tile rows are layer-major, row (t, i) = t * nb + i; a gate is a[m][g][c], g * cs + c in a row.
#pragma once

#include "../cells/cells.h"
#include "cell_args.h"
#include "products.cuh"

namespace dla {
namespace cuda {

template <class A>
DLA_DEVICE A relu_of(A x) {  // NaN passes
  return x < A(0) ? A(0) : x;
}

template <class A>
class Recurrence {
 public:
  const CellArgs<A>& args;
  const int T, R, NG;
  const int64_t B, C;
  const int rank, ranks;
  const int64_t c0;  // the block's first channel
  const int cs;      // and how many it has; perhaps none
  int nb;            // samples of the tile, from b0 on
  int64_t b0;

  DLA_DEVICE explicit Recurrence(const CellArgs<A>& args)
      : args(args),
        T(int(args.T)),
        R(int(args.R)),
        NG(args.NG),
        B(args.B),
        C(args.C),
        rank(cluster_rank()),
        ranks(args.plan.blocks_per_tile),
        c0(int64_t(cluster_rank()) * args.plan.channels),
        cs(own_channels(args)),
        nb(0),
        b0(0) {
    stage_weights();
    stage_bias();
  }

  // Moves on to the group's next tile, its first at the first call; false when there is none. All blocks of a
  // group take the same ones. Barriers: called at any time; on return all buffers are free, and after the last tile
  // no block will be asked for what it had to exchange.
  DLA_DEVICE bool next() {
    const int per_tile = args.plan.samples_per_tile;
    const int log_ranks = floor_log2(not_before(ranks));
    const int64_t group = block_index() >> log_ranks, groups = num_blocks() >> log_ranks;
    block_barrier();  // the buffers are free again
    b0 = nb == 0 ? group * per_tile : b0 + groups * per_tile;
    if (b0 >= B) {
      group_barrier();  // nobody leaves while others may read what it had to exchange
      return false;
    }
    nb = int(B - b0 < per_tile ? B - b0 : per_tile);
    return true;
  }

  DLA_DEVICE A* buffer(Buffer b) const {
    const int64_t place = args.plan.place[b];
    if (place >= 0) return reinterpret_cast<A*>(shared_memory() + place);
    char* mine = reinterpret_cast<char*>(args.workspace) + block_index() * args.plan.workspace_bytes;
    return reinterpret_cast<A*>(mine + (-1 - place));
  }
  // The same, known to lie in shared memory where kHot says so: an address that may be anywhere is looked up anew at
  // every access.
  template <bool kHot>
  DLA_DEVICE A* buffer(Buffer b) const {
    return kHot ? reinterpret_cast<A*>(shared_memory() + args.plan.place[b]) : buffer(b);
  }
  DLA_DEVICE bool bottleneck() const { return args.projection != Projection::kDense; }
  DLA_DEVICE int rows() const { return T * nb; }
  // Rows [0, scanned()) take part in the scan, [refreshed(), rows()) in the refresh.
  DLA_DEVICE int scanned() const { return args.scan_end * nb; }
  DLA_DEVICE int refreshed() const { return args.refresh_begin * nb; }
  DLA_DEVICE int gates() const { return NG * not_before(cs); }
  // The layer and the sample of row m of the tile. Mostly a tile is one sample, and nothing need be divided.
  DLA_DEVICE int layer_of(int m) const { return nb == 1 ? m : m / nb; }
  DLA_DEVICE int sample_of(int m) const { return nb == 1 ? 0 : m % nb; }
  // Where row m of the tile, channel c of the block, lies in a tensor [T, B, C].
  DLA_DEVICE int64_t at(int m, int c) const { return (int64_t(layer_of(m)) * B + b0 + sample_of(m)) * C + c0 + c; }
  // And sample i, channel c in a tensor [B, C].
  DLA_DEVICE int64_t at_sample(int i, int c) const { return (b0 + i) * C + c0 + c; }

  // f(row, column) for all of [M, N], shared over the threads.
  template <class F>
  DLA_DEVICE void for_each(int M, int N, F f) const {
    const Divisor by(N);
    for (int i = thread_index(); i < M * N; i += num_threads()) {
      const int m = M == 1 ? 0 : by.under(i);
      f(m, i - m * N);
    }
  }

  // Towards the bottleneck: the columns of W1 that this block owns. Dense: Wh and Wy whole, rows of gates.
  template <bool kHot = false>
  DLA_DEVICE WeightRows<A> w1h() const {
    if (kHot || args.plan.stages_weights) return {buffer<kHot>(kW1h), cs + kSkew, R, 0, 1};
    return given_w1h();
  }
  DLA_DEVICE WeightRows<A> w1y() const {
    return bottleneck() ? WeightRows<A>{args.w1y + first(), args.ld_w1, R, 0} : gate_rows(args.w1y, C);
  }
  // From there to the gates of its own channels.
  template <bool kHot = false>
  DLA_DEVICE WeightRows<A> w2h() const {
    if (kHot || args.plan.stages_weights) return {buffer<kHot>(kW2h), R + kSkew, gates() > 0 ? gates() : 1, 0, 1};
    return gate_rows(args.w2h, R);
  }
  DLA_DEVICE WeightRows<A> w2y() const { return gate_rows(args.w2y, R); }
  // How many rows W1 has: what h and y meet in, and where their gradients come from.
  DLA_DEVICE int w1_rows() const { return not_before(bottleneck() ? R : gates()); }

  DLA_DEVICE void load_rows(const A* from, A* to) const {  // [T, B, C] to [rows, cs]
    for_each(rows(), cs, [&](int m, int c) { to[m * cs + c] = from[at(m, c)]; });
  }
  DLA_DEVICE void store_rows(const A* from, int m0, int M, A* to) const {  // [M, cs] to rows m0 .. of [T, B, C]
    for_each(M, cs, [&](int m, int c) { to[at(m0 + m, c)] = from[m * cs + c]; });
  }
  DLA_DEVICE A start_c(int64_t at) const { return args.c0 ? args.c0[at] : A(0); }
  template <class Rule>
  DLA_DEVICE A start_h(int64_t at) const {
    return args.h0 ? args.h0[at] : args.c0 ? Rule::feed(args.c0[at]) : args.start_h;
  }
  DLA_DEVICE void load_start(A* h, A* c) const {
    with_rule(args.rule, [&](auto rule) {
      using Rule = decltype(rule);
      for_each(nb, cs, [&](int i, int j) {
        h[i * cs + j] = start_h<Rule>(at_sample(i, j));
        c[i * cs + j] = start_c(at_sample(i, j));
      });
    });
  }

  // ---- the exchange ----

  // Where the partial sums of the next exchange go, [M, R].
  template <bool kHot = false>
  DLA_DEVICE A* partials() const {
    return buffer<kHot>(kExchange) + parity_ * args.plan.chunk_layers * args.plan.samples_per_tile * R;
  }
  // f(m, r, sum over the group's blocks, in their order), in every block alike. Two buffers take turns, so that
  // one barrier is enough: who writes a buffer again has passed the next one, and so has everyone who read it.
  // Barriers, of the group: called with partials() just written; on return what f wrote is known.
  template <bool kHot = false, class F>
  DLA_DEVICE void exchange(int M, F f) {
    A* const mine = partials<kHot>();
    parity_ ^= 1;
    group_barrier();
    for_each(M, R, [&](int m, int r) {
      if (ranks == 1) return f(m, r, mine[m * R + r]);
      constexpr int kAhead = 4;  // blocks that are asked before the first answer is added
      A sum = A(0);
      for (int first = 0; first < ranks; first += kAhead) {
        A parts[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i)
          if (first + i < ranks) parts[i] = peer(mine, first + i)[m * R + r];
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
  // is called; on return kP, kQ and uy are.
  DLA_DEVICE void hoist(A* uy_kept) {
    const A* const y = buffer(kY);
    const bool joint = args.projection == Projection::kJoint;
    for_chunks(0, T, false, [&](int m0, int M) {
      const A* x = y + m0 * cs;
      if (bottleneck()) {
        A* const out = joint ? buffer(kP) + m0 * R : partials();
        dots(M, R, cs, x, cs, w1y(), [&](int m, int r, A sum) { out[m * R + r] = sum; });
        if (joint) return;
        A* const uy = uy_kept ? uy_kept + m0 * R : buffer(kU);
        exchange(M, [&](int m, int r, A sum) { uy[m * R + r] = relu_of(sum + args.b1y[r]); });
        x = uy;
      }
      A* const q = buffer(kQ) + m0 * gates();
      const int K = bottleneck() ? R : cs;
      dots(M, gates(), K, x, K, bottleneck() ? w2y() : w1y(),
           [&](int m, int n, A sum) { q[m * gates() + n] = sum + bias(n); });
      block_barrier();
    });
    block_barrier();
  }

  // ---- gates ----

  // Row m's part of p, which this block adds to its part of W1h h.
  DLA_DEVICE A p_part(int m, int r) const {
    return args.projection == Projection::kJoint ? buffer(kP)[m * R + r] : A(0);
  }
  DLA_DEVICE A relu_p(int r, A sum) const {  // u from the whole sum
    return relu_of(args.projection == Projection::kSplit ? sum + args.b1h[r] : sum);
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
  template <bool kHot = false>
  DLA_DEVICE void gates_of(int m0, int M, const A* h, A* u, A* a) {
    const A* const shared = buffer(kLastProduct);
    if (kHot || bottleneck()) {
      A* const part = partials<kHot>();
      if (h)
        dots(M, R, cs, h, cs, w1h<kHot>(), [&](int m, int r, A sum) { part[m * R + r] = sum + p_part(m0 + m, r); });
      else
        for_each(M, R, [&](int m, int r) { part[m * R + r] = shared[sample_of(m0 + m) * R + r] + p_part(m0 + m, r); });
      exchange<kHot>(M, [&](int m, int r, A sum) { u[m * R + r] = relu_p(r, sum); });
    }
    const auto q = [&](int m, int n) {
      return args.projection == Projection::kJoint ? buffer<kHot>(kBias)[n] : buffer(kQ)[m * gates() + n];
    };
    if (kHot || bottleneck() || h) {
      const int K = kHot || bottleneck() ? R : cs;
      dots(M, gates(), K, kHot || bottleneck() ? u : h, K, kHot || bottleneck() ? w2h<kHot>() : w1h(),
           [&](int m, int n, A sum) { a[m * gates() + n] = sum + q(m0 + m, n); });
    } else {
      for_each(M, gates(),
               [&](int m, int n) { a[m * gates() + n] = shared[sample_of(m0 + m) * gates() + n] + q(m0 + m, n); });
    }
    block_barrier();
  }
  // From kH, or the shared state, to kU and kGates. Barriers: as gates_of.
  DLA_DEVICE void gates_in_place(int m0, int M, bool own_h) {
    if (args.plan.hot)
      gates_of<true>(m0, M, own_h ? buffer<true>(kH) : nullptr, buffer<true>(kU), buffer<true>(kGates));
    else
      gates_of(m0, M, own_h ? buffer(kH) : nullptr, bottleneck() ? buffer(kU) : nullptr, buffer(kGates));
  }
  template <class Rule>
  DLA_DEVICE void read_gates(const A* a, int m, int c, A* out) const {
#pragma unroll
    for (int g = 0; g < Rule::NG; ++g) out[g] = a[m * gates() + g * cs + c];
  }

  // ---- forward ----

  // From kH, kC to the state after the scan's last layer; states_h and states_c are filled where they are saved.
  // Barriers: kH, kC and what hoist made are known when it is called; on return kH and kC are, and kKept is still read.
  DLA_DEVICE void scan(A* states_h, A* states_c) {
    A *const h = buffer(kH), *const c = buffer(kC);
    const A* const a = buffer(kGates);
    A* const kept = buffer(kKept);  // A barrier would wait for writes to global memory at every step.
    for (int t = 0; t < args.scan_end; ++t) {
      gates_in_place(t * nb, nb, /*own_h=*/true);
      with_rule(args.rule, [&](auto rule) {
        using Rule = decltype(rule);
        for_each(nb, cs, [&](int i, int j) {
          A gates[Rule::NG];
          read_gates<Rule>(a, i, j, gates);
          const int at_ij = i * cs + j;
          const State<A> s = Rule::step(gates, State<A>{h[at_ij], c[at_ij]});
          h[at_ij] = s.h, c[at_ij] = s.c;
          kept[(t * nb + i) * cs + j] = Rule::kSavesC ? s.c : s.h;
          if (Rule::kSavesC && Rule::kSavesH) states_h[at(t * nb + i, j)] = s.h;
        });
      });
      block_barrier();
    }
    A* const saved = args.saves_c ? states_c : states_h;
    for_each(scanned(), cs, [&](int m, int j) { saved[at(m, j)] = kept[m * cs + j]; });
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
      gates_in_place(m0, M, /*own_h=*/false);
      with_rule(args.rule, [&](auto rule) {
        using Rule = decltype(rule);
        for_each(M, cs, [&](int m, int j) {
          A gates[Rule::NG];
          read_gates<Rule>(a, m, j, gates);
          const int at_ij = sample_of(m) * cs + j;  // chunks begin with a layer
          d[m * cs + j] = Rule::output(Rule::step(gates, State<A>{h[at_ij], c[at_ij]}));
        });
      });
      block_barrier();
      f(m0, M, d);
      block_barrier();
    });
  }

 private:
  int parity_ = 0;

  static DLA_DEVICE int own_channels(const CellArgs<A>& args) {
    const int64_t left = args.C - int64_t(cluster_rank()) * args.plan.channels;
    return left <= 0 ? 0 : left < args.plan.channels ? int(left) : args.plan.channels;
  }
  DLA_DEVICE WeightRows<A> gate_rows(const A* w, int64_t K) const {
    return {w + first() * K, K, cs > 0 ? cs : 1, C * K};
  }
  // c0 again, for addresses that are not to be known, and kept, from the start.
  DLA_DEVICE int64_t first() const { return int64_t(not_before(rank)) * args.plan.channels; }
  DLA_DEVICE WeightRows<A> given_w1h() const {
    return bottleneck() ? WeightRows<A>{args.w1h + first(), args.ld_w1, R, 0} : gate_rows(args.w1h, C);
  }
  DLA_DEVICE A bias(int n) const { return buffer(kBias)[n]; }
  DLA_DEVICE void stage_bias() const {
    for_each(NG, cs, [&](int g, int c) {
      const int64_t at = int64_t(g) * C + c0 + c;
      buffer(kBias)[g * cs + c] = args.q1 ? args.q0[at] + args.q1[at] : args.q0[at];
    });
  }
  // A row of neighbours to a row of threads, so that there is little to divide.
  DLA_DEVICE void copy_rows(int M, int N, const WeightRows<A>& from, A* to, int ld) const {
    constexpr int V = kQuad<A>, kRowsAhead = 2;  // rows in flight
    const bool wide = N % V == 0 && in_quads(from.data, from.ld) && from.next % V == 0;
    const int pieces = wide ? N / V : N, lanes = power_of_two(pieces, kWarp);
    const int lane = thread_index() % lanes, group = thread_index() / lanes, groups = num_threads() / lanes;
    for (int m0 = group; m0 < M; m0 += groups * kRowsAhead) {
      const A* rows[kRowsAhead];
#pragma unroll
      for (int j = 0; j < kRowsAhead; ++j) rows[j] = from(at_most(m0 + j * groups, M - 1));
      for (int i = lane; i < pieces; i += lanes) {
        Neighbours<A, V> quads[kRowsAhead];
        A ones[kRowsAhead];
#pragma unroll
        for (int j = 0; j < kRowsAhead; ++j) {
          if (wide)
            quads[j].load(rows[j] + i * V);
          else
            ones[j] = rows[j][i];
        }
#pragma unroll
        for (int j = 0; j < kRowsAhead; ++j) {
          const int m = m0 + j * groups;
          if (m >= M) continue;
          if (wide)
            quads[j].store(to + m * ld + i * V);
          else
            to[m * ld + i] = ones[j];
        }
      }
    }
  }
  // Copies of the weights of every step, where the plan found room for them.
  DLA_DEVICE void stage_weights() const {
    if (!args.plan.stages_weights || R == 0) return;
    copy_rows(R, cs, given_w1h(), buffer(kW1h), cs + kSkew);
    copy_rows(gates(), R, gate_rows(args.w2h, R), buffer(kW2h), R + kSkew);
  }
};

}  // namespace cuda
}  // namespace dla
