// One tile of samples, as one block of the group sees it that runs the cell over it. Each block owns `cs` neighbouring
// channels from c0 on: their y, state and gates, and with them a column slice of W1 and a row slice of W2.
// In a tile rows are layer-major, row (t, i) = t * nb + i.
#pragma once

#include "../cells/cells.h"
#include "cell_args.h"
#include "products.cuh"

namespace dla {
namespace cuda {

template <class A>
class Tile {
 public:
  const CellArgs<A>& args;
  const int T, R, NG;
  const int64_t B, C;
  const int rank, ranks;
  const int64_t c0;  // the block's first channel
  const int cs;      // and how many it has; perhaps none
  int nb;            // samples of the tile, from b0 on
  int64_t b0;

  DLA_DEVICE explicit Tile(const CellArgs<A>& args)
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
  // The same, of a buffer that is known to lie in shared memory: an address that may be anywhere is looked up anew at
  // every access.
  DLA_DEVICE A* shared(Buffer b) const { return reinterpret_cast<A*>(shared_memory() + args.plan.place[b]); }
  DLA_DEVICE bool bottleneck() const { return args.projection != Projection::kDense; }
  // Whether y has a bottleneck of its own.
  DLA_DEVICE bool y_apart() const {
    return args.projection == Projection::kSplit || args.projection == Projection::kSqueeze;
  }
  DLA_DEVICE int rows() const { return T * nb; }
  // Rows [0, scanned()) take part in the scan, [refreshed(), rows()) in the refresh.
  DLA_DEVICE int scanned() const { return args.scan_end * nb; }
  DLA_DEVICE int refreshed() const { return args.refresh_begin * nb; }
  DLA_DEVICE int gates() const { return NG * not_before(cs); }
  // The layer and the sample of row m of the tile. Mostly a tile is one sample, and nothing need be divided.
  DLA_DEVICE int layer_of(int m) const { return nb == 1 ? m : m / nb; }
  DLA_DEVICE int sample_of(int m) const { return nb == 1 ? 0 : m % nb; }
  // Where in a buffer row m has channel c of the block, unit r of the bottleneck, gate g of channel c.
  DLA_DEVICE int of_channel(int m, int c) const { return m * cs + c; }
  DLA_DEVICE int of_unit(int m, int r) const { return m * R + r; }
  DLA_DEVICE int of_gate(int m, int g, int c) const { return m * gates() + g * cs + c; }
  // Where row m of the tile, or layer t of its sample i, channel c of the block, lies in a tensor [T, B, C].
  DLA_DEVICE int64_t at(int m, int c) const { return at(layer_of(m), sample_of(m), c); }
  DLA_DEVICE int64_t at(int t, int i, int c) const { return (int64_t(t) * B + b0 + i) * C + c0 + c; }
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
  DLA_DEVICE WeightRows<A> w1h() const {
    return args.plan.stages_weights ? WeightRows<A>{buffer(kW1h), in_odd_fours(cs), R, 0, 1} : given_w1h();
  }
  DLA_DEVICE WeightRows<A> w1y() const {
    return bottleneck() ? WeightRows<A>{args.w1y + first(), args.ld_w1, R, 0} : gate_rows(args.w1y, C);
  }
  // From there to the gates of its own channels.
  DLA_DEVICE WeightRows<A> w2h() const {
    if (!args.plan.stages_weights) return gate_rows(args.w2h, R);
    return {buffer(kW2h), in_odd_fours(R), gates() > 0 ? gates() : 1, 0, 1};
  }
  DLA_DEVICE WeightRows<A> w2y() const { return gate_rows(args.w2y, R); }
  // How many rows W1 has: what h and y meet in, and where their gradients come from.
  DLA_DEVICE int w1_rows() const { return not_before(bottleneck() ? R : gates()); }

  DLA_DEVICE void load_rows(const A* from, A* to) const {  // [T, B, C] to [rows, cs]
    for_each(rows(), cs, [&](int m, int c) { to[of_channel(m, c)] = from[at(m, c)]; });
  }
  DLA_DEVICE void store_rows(const A* from, int m0, int M, A* to) const {  // [M, cs] to rows m0 .. of [T, B, C]
    for_each(M, cs, [&](int m, int c) { to[at(m0 + m, c)] = from[of_channel(m, c)]; });
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
        h[of_channel(i, j)] = start_h<Rule>(at_sample(i, j));
        c[of_channel(i, j)] = start_c(at_sample(i, j));
      });
    });
  }

 private:
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
  DLA_DEVICE void stage_bias() const {
    for_each(NG, cs, [&](int g, int c) {
      const int64_t at = int64_t(g) * C + c0 + c;
      buffer(kBias)[g * cs + c] = args.q1 ? args.q0[at] + args.q1[at] : args.q0[at];
    });
  }
  // A row of neighbours to a row of threads, so that there is little to divide; on its way until await_copies().
  DLA_DEVICE void copy_rows(int M, int N, const WeightRows<A>& from, A* to, int ld) const {
    constexpr int V = kQuad<A>;
    const bool wide = N % V == 0 && in_quads(from.data, from.ld) && from.next % V == 0;
    const int pieces = wide ? N / V : N, lanes = power_of_two(pieces, kWarp);
    const int lane = thread_index() % lanes, groups = num_threads() / lanes;
    for (int m = thread_index() / lanes; m < M; m += groups) {
      const A* const row = from(m);
      for (int i = lane; i < pieces; i += lanes) {
        if (wide)
          copy_async(as_words4(to + m * ld + i * V), as_words4(row + i * V));
        else
          copy_async(to + m * ld + i, row + i);
      }
    }
  }
  // Copies of the weights of every step, where the plan found room for them: while the first maps are being pooled.
  DLA_DEVICE void stage_weights() const {
    if (!args.plan.stages_weights || R == 0) return;
    const int fours = in_odd_fours(R);
    copy_rows(R, cs, given_w1h(), buffer(kW1h), in_odd_fours(cs));
    copy_rows(gates(), R, gate_rows(args.w2h, R), buffer(kW2h), fours);
    for_each(gates(), fours - R, [&](int n, int k) { buffer(kW2h)[n * fours + R + k] = A(0); });
  }
};

}  // namespace cuda
}  // namespace dla
